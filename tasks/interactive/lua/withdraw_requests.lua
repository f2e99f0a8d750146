#!lua flags=allow-oom
-- Take back requests whose callers went away: out of a lane's list with their tokens; of those that are not there, let
-- the workers know. Run twice, it only lets the workers know.
-- KEYS[1] list   requests that wait (tasks.keys.lane_requests)
-- KEYS[2] hash   tokens that wait in it (lane_load)
-- KEYS[3] zset   names of requests that workers shall give up, by the ms at which that is forgotten (lane_withdrawn)
-- ARGV[1] ms until that is forgotten; then the requests' names (tasks/interactive/protocol.py)
local page = 100
local wanted = {}
local left = #ARGV - 1
for i = 2, #ARGV do
  wanted[ARGV[i]] = true
end

local tokens = 0
local found = 0
local length = redis.call('LLEN', KEYS[1])
for start = 0, length - 1, page do
  if left == 0 then
    break
  end
  for i, element in ipairs(redis.call('LRANGE', KEYS[1], start, start + page - 1)) do
    local name = string.sub(element, 13, 28)
    if wanted[name] then
      wanted[name] = nil
      left = left - 1
      found = found + 1
      tokens = tokens + struct.unpack('<I', element, 9)
      redis.call('LSET', KEYS[1], start + i - 1, '')
    end
  end
end
if found > 0 then
  redis.call('LREM', KEYS[1], 0, '')
  local counted = tonumber(redis.call('HGET', KEYS[2], 'waiting') or 0)
  if counted > 0 then
    redis.call('HSET', KEYS[2], 'waiting', string.format('%.0f', math.max(0, counted - tokens)))
  end
end

if left > 0 then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_ms)
  for name in pairs(wanted) do
    redis.call('ZADD', KEYS[3], now_ms + ARGV[1], name)
  end
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
end
return found
