#!lua flags=allow-oom
-- Claim ends that are due for a while; when the process dies, the claim expires and another process gets them.
-- Answers job ids
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', DUE, '-inf', now_ms, 'LIMIT', 0, most)
for _, job_id in ipairs(due) do redis.call('ZADD', DUE, 'XX', now_ms + hold_ms, job_id) end
return due
