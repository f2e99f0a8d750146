#!lua flags=allow-oom
-- Take or renew the lock of a batch: one process at a time, and another one when the lock is not renewed.
-- Returns 1, or 0 when another process has it or there is nothing left to do.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state, held_by, until_ms = unpack(redis.call('HMGET', BATCH, 'state', 'holder', 'held_until_ms'))
if not state or not redis.call('ZSCORE', ACTIVE, member) then
  redis.call('ZREM', ACTIVE, member)
  return 0
end
if held_by ~= holder and tonumber(until_ms) > now_ms then
  return 0
end
local next_ms = string.format('%.0f', now_ms + lock_ms)
redis.call('HSET', BATCH, 'holder', holder, 'held_until_ms', next_ms)
redis.call('ZADD', ACTIVE, next_ms, member)
return 1
