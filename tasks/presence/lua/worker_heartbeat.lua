#!lua flags=allow-oom
-- Say that a worker is ready for a model, and forget those that were not heard of in time.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGE', WORKERS, '-inf', string.format('%.0f', now_ms), 'BYSCORE')
for _, worker in ipairs(gone) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', FACTS, worker)
end
redis.call('ZADD', WORKERS, string.format('%.0f', now_ms + ttl_ms), worker_id)
redis.call('HSET', FACTS, worker_id, info)
redis.call('PEXPIRE', WORKERS, ttl_ms)
redis.call('PEXPIRE', FACTS, ttl_ms)
return #gone
