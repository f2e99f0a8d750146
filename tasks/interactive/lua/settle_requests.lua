#!lua flags=allow-oom
-- After a worker took requests off a lane's list: count their tokens out, and put back those that it refused.
-- KEYS[1] list   requests that wait (tasks.keys.lane_requests)
-- KEYS[2] hash   tokens that wait in it (lane_load)
-- ARGV[1] tokens of the requests that left, ARGV[2] ms to keep what is put back; then the refused, in their order
local refused = 0
for i = #ARGV, 3, -1 do
  redis.call('LPUSH', KEYS[1], ARGV[i])
  -- float64 deadline, uint32 tokens (tasks/interactive/protocol.py); behind the first that was refused nothing was read yet.
  if #ARGV[i] >= 12 then
    refused = refused + struct.unpack('<I', ARGV[i], 9)
  end
end
if redis.call('LLEN', KEYS[1]) == 0 then
  return redis.call('DEL', KEYS[2])
end
if #ARGV > 2 then
  redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[2]))))
end
-- Another worker may have found the list empty meanwhile and forgotten the count; what was put back waits in any case.
local waiting = tonumber(redis.call('HGET', KEYS[2], 'waiting') or 0) - tonumber(ARGV[1])
redis.call('HSET', KEYS[2], 'waiting', string.format('%.0f', math.max(refused, waiting)))
return redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
