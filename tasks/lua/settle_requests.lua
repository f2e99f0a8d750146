#!lua flags=allow-oom
-- After a worker took requests off a lane's list: count their tokens out, and put back those that it refused.
-- KEYS[1] list   requests that wait (tasks.keys.lane_requests)
-- KEYS[2] hash   tokens that wait in it (lane_load)
-- ARGV[1] tokens of the requests that left, ARGV[2] ms to keep what is put back; then the refused, in their order
for i = #ARGV, 3, -1 do
  redis.call('LPUSH', KEYS[1], ARGV[i])
end
if redis.call('LLEN', KEYS[1]) == 0 then
  return redis.call('DEL', KEYS[2])
end
if #ARGV > 2 then
  redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[2]))))
end
local waiting = tonumber(redis.call('HGET', KEYS[2], 'waiting') or 0) - tonumber(ARGV[1])
redis.call('HSET', KEYS[2], 'waiting', string.format('%.0f', math.max(0, waiting)))
return redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
