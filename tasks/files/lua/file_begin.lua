#!lua flags=allow-oom
-- Announce bytes before the first of them is written, so that a process that dies leaves nothing that nobody sweeps.
-- Run again while the bytes come: it only moves the time at which they count as left behind.
-- KEYS[1] hash   the file record (tasks.keys.file)
-- KEYS[2] zset   all files, by the ms at which their bytes go (files_expiry)
-- ARGV[1] member of that set, ARGV[2] ms that the announcement holds; then fields and values of the record
-- Returns 1, or 0 when the file is complete or deleted already.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'writing' then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'writing', unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.max(redis.call('PTTL', KEYS[2]), ARGV[2] * 2)))
return 1
