#!lua flags=allow-oom
-- Take back requests whose callers went away: out of a lane's list with their tokens; of those that are not there, let
-- the workers know. Run twice, it only lets the workers know.
local page = 100
local wanted = {}
local left = #names
for _, name in ipairs(names) do
  wanted[name] = true
end

local tokens = 0
local found = 0
local length = redis.call('LLEN', WAITING_LIST)
for start = 0, length - 1, page do
  if left == 0 then
    break
  end
  for i, element in ipairs(redis.call('LRANGE', WAITING_LIST, start, start + page - 1)) do
    local name = string.sub(element, 13, 28)
    if wanted[name] then
      wanted[name] = nil
      left = left - 1
      found = found + 1
      tokens = tokens + struct.unpack('<I', element, 9)
      redis.call('LSET', WAITING_LIST, start + i - 1, '')
    end
  end
end
if found > 0 then
  redis.call('LREM', WAITING_LIST, 0, '')
  local counted = tonumber(redis.call('HGET', LOAD, 'waiting') or 0)
  if counted > 0 then
    redis.call('HSET', LOAD, 'waiting', string.format('%.0f', math.max(0, counted - tokens)))
  end
end

if left > 0 then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZREMRANGEBYSCORE', WITHDRAWN, '-inf', now_ms)
  for name in pairs(wanted) do
    redis.call('ZADD', WITHDRAWN, now_ms + forget_ms, name)
  end
  redis.call('PEXPIRE', WITHDRAWN, forget_ms)
end
return found
