#!lua flags=no-writes
-- List uploads that never became jobs and whose time is over.
-- KEYS 1 unfinished uploads
-- Answers job ids
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000, 'LIMIT', 0, 100)
