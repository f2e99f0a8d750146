#!lua flags=no-writes
-- List what is overdue in a lane, by the server's clock.
-- KEYS 1 lane: tickets and claims, 2 lane: deadlines
-- ARGV 1 how long after a start of the server claims are left alone (s), 2 most entries to answer
-- Answers {overdue tickets and claims, jobs whose deadline has passed}
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[2])
local jobs = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, ARGV[2])
-- While the server was away nobody could send a heartbeat: give the living time to do so before their claims are taken.
if #entries > 0 then
  local uptime_s = tonumber(redis.call('INFO', 'server'):match('uptime_in_seconds:(%d+)'))
  if uptime_s < tonumber(ARGV[1]) then entries = {} end
end
return { entries, jobs }
