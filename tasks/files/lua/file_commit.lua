#!lua flags=allow-oom
-- Make a file whose bytes are all there visible. Running it twice changes nothing.
-- Returns 1, or 0 when it was swept meanwhile.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HGET', FILE, 'state')
if state == 'ready' then
  return 1
end
if state ~= 'writing' then
  return 0
end
local expires_ms = string.format('%.0f', now_ms + ttl_ms)
local keep_ms = ttl_ms + grace_ms
redis.call('HSET', FILE, 'state', 'ready', 'bytes', size_bytes,
  'created_ms', string.format('%.0f', now_ms), 'expires_ms', expires_ms)
redis.call('PEXPIRE', FILE, string.format('%.0f', keep_ms))
redis.call('ZADD', EXPIRY, expires_ms, member)
redis.call('PEXPIRE', EXPIRY, string.format('%.0f', math.max(redis.call('PTTL', EXPIRY), keep_ms)))
if file_id ~= '' then
  redis.call('ZADD', LISTED, 0, file_id)
  redis.call('PEXPIRE', LISTED, string.format('%.0f', math.max(redis.call('PTTL', LISTED), keep_ms)))
end
return 1
