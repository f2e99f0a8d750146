#!lua flags=allow-oom
-- Forget a file whose bytes are gone.
-- KEYS[1] hash   the file record (tasks.keys.file)
-- KEYS[2] zset   all files, by the ms at which their bytes go (files_expiry)
-- KEYS[3] zset   the tenant's visible files (tenant_files)
-- ARGV[1] member of KEYS[2], ARGV[2] file id
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[3], ARGV[2])
