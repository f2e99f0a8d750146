#!lua flags=no-writes
-- List uploads that never became jobs and that nothing was added to for a while.
-- KEYS 1 unfinished uploads
-- ARGV 1 how long a while is (ms)
-- Answers job ids
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 - ARGV[1], 'LIMIT', 0, 100)
