#!lua flags=allow-oom
-- Announce bytes before the first of them is written, so that the sweep finds what a process that dies leaves behind.
-- Run again while bytes arrive, it only moves the time at which they count as left behind.
-- Returns 1, or 0 when the file is complete or deleted already.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HGET', FILE, 'state')
if state and state ~= 'writing' then
  return 0
end
redis.call('HSET', FILE, 'state', 'writing', unpack(fields))
redis.call('PEXPIRE', FILE, hold_ms * 2)
redis.call('ZADD', EXPIRY, string.format('%.0f', now_ms + hold_ms), member)
redis.call('PEXPIRE', EXPIRY, string.format('%.0f', math.max(redis.call('PTTL', EXPIRY), hold_ms * 2)))
return 1
