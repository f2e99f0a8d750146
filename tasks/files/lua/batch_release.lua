#!lua flags=allow-oom
-- Give a batch back: somebody should look at it again after a while.
-- KEYS[1] hash   the batch record (tasks.keys.batch)
-- KEYS[2] zset   batches that are not done with, by the ms at which somebody should look (batches_active)
-- ARGV[1] member of KEYS[2], ARGV[2] name of the holder, ARGV[3] ms until then
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'held_until_ms', 0)
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms + ARGV[3]), ARGV[1])
end
return 1
