#!lua flags=allow-oom
-- Register a worker as ready for a model, and remove those whose heartbeat has expired.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGE', WORKERS, '-inf', string.format('%.0f', now_ms), 'BYSCORE')
for _, worker in ipairs(gone) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', INFOS, worker)
end
redis.call('ZADD', WORKERS, string.format('%.0f', now_ms + ttl_ms), worker_id)
redis.call('HSET', INFOS, worker_id, info)
redis.call('PEXPIRE', WORKERS, ttl_ms)
redis.call('PEXPIRE', INFOS, ttl_ms)
return #gone
