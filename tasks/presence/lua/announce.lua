#!lua flags=allow-oom
-- Say that a worker is ready for a model, and forget those that were not heard of in time.
-- KEYS[1] zset   ready workers by the ms at which they count as gone (tasks.keys.lane_workers)
-- KEYS[2] hash   what they say of themselves, JSON (worker_facts)
-- ARGV[1] worker id, ARGV[2] ms that the announcement holds, ARGV[3] facts as JSON
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGE', KEYS[1], '-inf', string.format('%.0f', now_ms), 'BYSCORE')
for _, worker in ipairs(gone) do
  redis.call('ZREM', KEYS[1], worker)
  redis.call('HDEL', KEYS[2], worker)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return #gone
