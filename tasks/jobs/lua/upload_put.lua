#!lua
-- Store one more chunk of an upload, and how far the upload has come with it. Only its present writer can.
-- KEYS 1 upload record, 2 input of the chunk, 3 unfinished uploads
-- ARGV 1 name of the writer, 2 job id, 3 chunk number, 4 its line of the chunk table, 5 its texts,
--      6 how long the upload is kept if nothing more comes (ms), 7 how long the texts are kept (ms),
--      8 bytes and 9 lines before the next chunk, 10 digest of these lines, 11 stored bytes
-- Answers OK or TAKEN
local UPLOAD = KEYS[1]
local known = redis.call('HMGET', UPLOAD, 'owner', 'created_ms')
if known[1] ~= ARGV[1] then return 'TAKEN' end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[7])
redis.call('HSET', UPLOAD, ARGV[3], ARGV[4], 'offset', ARGV[8], 'lines', ARGV[9], 'digest', ARGV[10], 'bytes', ARGV[11])
-- A day at most, so that the first texts do not run out before the last ones are there.
local until_ms = math.min(now_ms + ARGV[6], known[2] + 86400000)
redis.call('PEXPIREAT', UPLOAD, string.format('%.0f', until_ms))
-- The record goes first: nobody goes on with texts that are being swept.
redis.call('ZADD', KEYS[3], string.format('%.0f', until_ms + 60000), ARGV[2])
redis.call('PEXPIRE', KEYS[3], string.format('%.0f', math.max(redis.call('PTTL', KEYS[3]), ARGV[7])))
return 'OK'
