#!lua flags=allow-oom
-- List what is overdue in a lane, by Redis' clock.
-- Answers {overdue tickets and claims, jobs whose deadline has passed, jobs that may begin by now}
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Nothing is held for longer than this, unless the clock stepped back since: then it would be held for as much longer.
local longest = string.format('%.0f', now_ms + longest_ms)
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', INFLIGHT, '(' .. longest, '+inf', 'LIMIT', 0, most)) do
  redis.call('ZADD', INFLIGHT, 'XX', longest, entry)
end
local entries = redis.call('ZRANGEBYSCORE', INFLIGHT, '-inf', now_ms, 'LIMIT', 0, most)
local jobs = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now_ms, 'LIMIT', 0, most)
local waiting = redis.call('ZRANGEBYSCORE', LATER, '-inf', now_ms, 'LIMIT', 0, most)
-- While Redis was away no worker could send a heartbeat: give them time to do so before their claims are taken.
if #entries > 0 then
  local uptime_s = tonumber(redis.call('INFO', 'server'):match('uptime_in_seconds:(%d+)'))
  if uptime_s < grace_s then entries = {} end
end
return { entries, jobs, waiting }
