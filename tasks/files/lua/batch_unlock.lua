#!lua flags=allow-oom
-- Release the lock of a batch, which is due again after a while.
if redis.call('HGET', BATCH, 'holder') ~= holder then
  return 0
end
redis.call('HSET', BATCH, 'held_until_ms', 0)
if redis.call('ZSCORE', ACTIVE, member) then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZADD', ACTIVE, string.format('%.0f', now_ms + delay_ms), member)
end
return 1
