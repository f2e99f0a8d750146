#!lua flags=allow-oom
-- Take a file out of sight, due to be swept: its bytes are removed next, or by the sweep when this process dies now.
-- Returns 1, or 0 when there was no such file.
redis.call('ZREM', LISTED, file_id)
if redis.call('EXISTS', FILE) == 0 then
  return 0
end
redis.call('HSET', FILE, 'state', 'deleted')
redis.call('ZADD', EXPIRY, 0, member)
return 1
