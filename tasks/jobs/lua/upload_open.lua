#!lua
-- Become the writer of an upload, or begin it. Whoever was the writer before can add nothing any more.
-- KEYS 1 upload record
-- ARGV 1 name of the writer, 2 hash of the request's parameters, 3 job id of an upload to begin, or '' to only go on,
--      4 how long it is kept if nothing comes (ms)
-- Answers {NONE}, {MISMATCH} or {UPLOAD, field, value, ...}
local UPLOAD = KEYS[1]
local hash = redis.call('HGET', UPLOAD, 'described')
if not hash then
  if ARGV[3] == '' then return { 'NONE' } end
  local time = redis.call('TIME')
  redis.call('HSET', UPLOAD, 'job', ARGV[3], 'described', ARGV[2], 'offset', 0, 'lines', 0, 'digest', '', 'bytes', 0,
    'created_ms', time[1] * 1000, 'owner', ARGV[1])
  redis.call('PEXPIRE', UPLOAD, ARGV[4])
elseif hash ~= ARGV[2] then
  return { 'MISMATCH' }
elseif ARGV[3] == '' then
  redis.call('HSET', UPLOAD, 'owner', ARGV[1])
end
return { 'UPLOAD', unpack(redis.call('HGETALL', UPLOAD)) }
