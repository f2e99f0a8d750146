#!lua flags=no-writes
-- List what is overdue in a lane, by Redis' clock.
-- Answers {overdue tickets and claims, jobs whose deadline has passed, jobs that may begin by now}
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local entries = redis.call('ZRANGEBYSCORE', INFLIGHT, '-inf', now_ms, 'LIMIT', 0, most)
local jobs = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now_ms, 'LIMIT', 0, most)
local waiting = redis.call('ZRANGEBYSCORE', LATER, '-inf', now_ms, 'LIMIT', 0, most)
-- While Redis was away no worker could send a heartbeat: give them time to do so before their claims are taken.
if #entries > 0 then
  local uptime_s = tonumber(redis.call('INFO', 'server'):match('uptime_in_seconds:(%d+)'))
  if uptime_s < grace_s then entries = {} end
end
return { entries, jobs, waiting }
