#!lua flags=no-writes
-- List tenants that have ends to be sent now, by whose turn was longest ago.
-- Answers tenants
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', TENANTS, '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, most)
