#!lua flags=allow-oom
-- After a worker took requests off a lane's list: count their tokens out, and put back those that it refused.
local back = 0
for i = #refused, 1, -1 do
  redis.call('LPUSH', WAITING_LIST, refused[i])
  -- float64 deadline, uint32 tokens (tasks/interactive/protocol.py); earlier workers put back what they did not read.
  if #refused[i] >= 12 then
    back = back + struct.unpack('<I', refused[i], 9)
  end
end
if redis.call('LLEN', WAITING_LIST) == 0 then
  return redis.call('DEL', LOAD)
end
if #refused > 0 then
  redis.call('PEXPIRE', WAITING_LIST, math.ceil(math.max(redis.call('PTTL', WAITING_LIST), keep_ms)))
end
-- Another worker may have found the list empty meanwhile and forgotten the count; what was put back waits in any case.
local waiting = tonumber(redis.call('HGET', LOAD, 'waiting') or 0) - tokens
redis.call('HSET', LOAD, 'waiting', string.format('%.0f', math.max(back, waiting)))
return redis.call('PEXPIRE', LOAD, redis.call('PTTL', WAITING_LIST))
