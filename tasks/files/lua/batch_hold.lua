#!lua flags=allow-oom
-- Take or renew the right to move a batch on: one process at a time, and another one when it is not heard of.
-- KEYS[1] hash   the batch record (tasks.keys.batch)
-- KEYS[2] zset   batches that are not done with, by the ms at which somebody should look (batches_active)
-- ARGV[1] member of KEYS[2], ARGV[2] name of the holder, ARGV[3] ms that the hold lasts
-- Returns 1, or 0 when somebody else has it or there is nothing left to do.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state, holder, until_ms = unpack(redis.call('HMGET', KEYS[1], 'state', 'holder', 'held_until_ms'))
if not state or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
if holder ~= ARGV[2] and tonumber(until_ms) > now_ms then
  return 0
end
local next_ms = string.format('%.0f', now_ms + ARGV[3])
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'held_until_ms', next_ms)
redis.call('ZADD', KEYS[2], next_ms, ARGV[1])
return 1
