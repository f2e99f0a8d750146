#!lua
-- Keep the newest card of a worker and the time of its heartbeat; forget workers that were not heard of for `keep_ms`.
-- Answers what the worker is asked to do, or an empty string
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', CARDS, worker_id, card)
redis.call('ZADD', SEEN, now_ms, worker_id)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', now_ms - keep_ms, 'LIMIT', 0, 100)) do
  redis.call('ZREM', SEEN, gone)
  redis.call('HDEL', CARDS, gone)
  redis.call('HDEL', ENDS, gone)
  redis.call('HDEL', ORDERS, gone)
end
redis.call('PEXPIRE', CARDS, keep_ms)
redis.call('PEXPIRE', SEEN, keep_ms)
return redis.call('HGET', ORDERS, worker_id) or ''
