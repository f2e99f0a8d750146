#!lua flags=allow-oom
-- Make a file whose bytes are all there visible. Running it twice changes nothing.
-- KEYS[1] hash   the file record (tasks.keys.file)
-- KEYS[2] zset   all files, by the ms at which their bytes go (files_expiry)
-- KEYS[3] zset   the tenant's visible files, by name alone (tenant_files)
-- ARGV[1] member of KEYS[2], ARGV[2] file id, or empty for a file that is not listed, ARGV[3] ms to keep it,
-- ARGV[4] ms that its record outlives it, ARGV[5] size in bytes
-- Returns 1, or 0 when it was swept meanwhile.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'ready' then
  return 1
end
if state ~= 'writing' then
  return 0
end
local expires_ms = string.format('%.0f', now_ms + ARGV[3])
local keep_ms = ARGV[3] + ARGV[4]
redis.call('HSET', KEYS[1], 'state', 'ready', 'bytes', ARGV[5],
  'created_ms', string.format('%.0f', now_ms), 'expires_ms', expires_ms)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms))
redis.call('ZADD', KEYS[2], expires_ms, ARGV[1])
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.max(redis.call('PTTL', KEYS[2]), keep_ms)))
if ARGV[2] ~= '' then
  redis.call('ZADD', KEYS[3], 0, ARGV[2])
  redis.call('PEXPIRE', KEYS[3], string.format('%.0f', math.max(redis.call('PTTL', KEYS[3]), keep_ms)))
end
return 1
