#!lua
-- Store the texts of a chunk whose job does not exist yet, and note until when it may come, so that an upload that breaks
-- off is swept.
-- KEYS 1 input of the chunk, 2 unfinished uploads
-- ARGV 1 texts, 2 how long to keep them (ms), 3 job id, 4 how long nothing may follow (ms)
-- Answers OK
local time = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', time[1] * 1000 + ARGV[4]), ARGV[3])
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.max(redis.call('PTTL', KEYS[2]), ARGV[2])))
return 'OK'
