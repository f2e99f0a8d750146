#!lua flags=allow-oom
-- Register a worker as ready for a model, and remove those whose heartbeat has expired.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGE', WORKERS, '-inf', string.format('%.0f', now_ms), 'BYSCORE')
for _, worker in ipairs(gone) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFOS, worker)
end
-- A worker that died before the clock stepped back would count as ready until the clock is there again.
local latest = string.format('%.0f', now_ms + 600000)
for _, worker in ipairs(redis.call('ZRANGE', WORKERS, '(' .. latest, '+inf', 'BYSCORE')) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFOS, worker)
end
redis.call('ZADD', WORKERS, string.format('%.0f', now_ms + ttl_ms), worker_id)
redis.call('HSET', INFOS, worker_id, info)
redis.call('PEXPIRE', WORKERS, ttl_ms)
redis.call('PEXPIRE', INFOS, ttl_ms)
return #gone
