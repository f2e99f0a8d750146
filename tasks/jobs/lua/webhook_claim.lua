#!lua flags=allow-oom
-- Take ends that somebody has to be told of now, and hold them for a while: whoever dies over one leaves it to another.
-- KEYS 1 ends that a webhook has to be told of
-- ARGV 1 how long they are held (ms), 2 most of them
-- Answers job ids
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[2])
for _, job_id in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now_ms + ARGV[1], job_id) end
return due
