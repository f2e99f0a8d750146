#!lua
-- Store one more chunk of an upload, and how far the upload has come with it. Only its present writer can.
-- Answers OK or TAKEN
local known = redis.call('HMGET', UPLOAD, 'owner', 'created_ms')
if known[1] ~= owner then return 'TAKEN' end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', INPUT, packed, 'PX', input_ms)
redis.call('HSET', UPLOAD, number, line, 'offset', offset_bytes, 'lines', lines, 'digest', digest, 'bytes', stored_bytes)
-- A day at most, so that the first texts do not run out before the last ones are there.
local until_ms = math.min(now_ms + life_ms, known[2] + 86400000)
redis.call('PEXPIREAT', UPLOAD, string.format('%.0f', until_ms))
-- The record goes first: nobody goes on with texts that are being swept.
redis.call('ZADD', UPLOADS, string.format('%.0f', until_ms + 60000), job_id)
redis.call('PEXPIRE', UPLOADS, string.format('%.0f', math.max(redis.call('PTTL', UPLOADS), input_ms)))
return 'OK'
