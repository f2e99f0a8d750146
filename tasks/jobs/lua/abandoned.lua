#!lua flags=no-writes
-- List uploads that never became jobs and whose time is over.
-- Answers job ids
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', UPLOADS, '-inf', time[1] * 1000, 'LIMIT', 0, 100)
