#!lua
-- Become the writer of an upload, or begin it. Whoever was the writer before can add nothing any more.
-- Answers {NONE}, {MISMATCH} or {UPLOAD, field, value, ...}
local hash = redis.call('HGET', UPLOAD, 'described')
if not hash then
  if job_id == '' then return { 'NONE' } end
  local time = redis.call('TIME')
  redis.call('HSET', UPLOAD, 'job', job_id, 'described', described, 'offset', 0, 'lines', 0, 'digest', '', 'bytes', 0,
    'created_ms', time[1] * 1000, 'owner', owner)
  redis.call('PEXPIRE', UPLOAD, life_ms)
elseif hash ~= described then
  return { 'MISMATCH' }
elseif job_id == '' then
  redis.call('HSET', UPLOAD, 'owner', owner)
end
return { 'UPLOAD', unpack(redis.call('HGETALL', UPLOAD)) }
