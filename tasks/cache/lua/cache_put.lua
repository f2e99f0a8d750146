#!lua
-- Keep values that were computed, within a budget of bytes: the oldest go first. When Redis is full the call is
-- refused as a whole; nothing is lost by that.
-- Answers the bytes that are kept now
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = tonumber(redis.call('GET', BYTES) or 0)

local function forget(digest)
  kept = kept - redis.call('HSTRLEN', VALUES, digest) - overhead_bytes
  redis.call('HDEL', VALUES, digest)
end

for i = 1, #entries, 2 do
  if redis.call('HSETNX', VALUES, entries[i], entries[i + 1]) == 1 then
    kept = kept + #entries[i + 1] + overhead_bytes
  end
  redis.call('ZADD', TIMES, now_ms, entries[i])
end
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', TIMES, '-inf', now_ms - ttl_ms, 'LIMIT', 0, 1000)) do
  forget(digest)
  redis.call('ZREM', TIMES, digest)
end
while kept > budget_bytes do
  local oldest = redis.call('ZPOPMIN', TIMES)
  if not oldest[1] then break end
  forget(oldest[1])
end
redis.call('SET', BYTES, kept)
for _, key in ipairs({ VALUES, TIMES, BYTES }) do redis.call('PEXPIRE', key, life_ms) end
return kept
