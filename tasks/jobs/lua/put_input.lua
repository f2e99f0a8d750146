#!lua
-- Store the texts of a chunk whose job does not exist yet, and note until when it may come, so that an upload that is
-- cut off is swept.
-- Answers OK
local time = redis.call('TIME')
redis.call('SET', INPUT, packed, 'PX', ttl_ms)
redis.call('ZADD', UPLOADS, string.format('%.0f', time[1] * 1000 + abandoned_ms), job_id)
redis.call('PEXPIRE', UPLOADS, string.format('%.0f', math.max(redis.call('PTTL', UPLOADS), ttl_ms)))
return 'OK'
