#!lua flags=allow-oom
-- Take a file out of sight, due to be swept: its bytes are removed next, or by the sweep when this process dies now.
-- KEYS[1] hash   the file record (tasks.keys.file)
-- KEYS[2] zset   all files, by the ms at which their bytes go (files_expiry)
-- KEYS[3] zset   the tenant's visible files (tenant_files)
-- ARGV[1] member of KEYS[2], ARGV[2] file id
-- Returns 1, or 0 when there was no such file.
redis.call('ZREM', KEYS[3], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'deleted')
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
