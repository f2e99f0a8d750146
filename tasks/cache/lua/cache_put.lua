#!lua
-- Keep values that were computed, within a budget of bytes: the oldest go first. Without room in the server the call is
-- refused as a whole, and nothing is lost by that.
-- KEYS 1 values by digest, 2 digests by the time (ms) at which they were put, 3 bytes that they take
-- ARGV 1 budget (bytes), 2 how long a value holds (ms), 3 how long all are kept when none is put any more (ms),
--      4 bytes that an entry takes besides its value; then digest, value
-- Answers the bytes that are kept now
local VALUES, TIMES, BYTES = KEYS[1], KEYS[2], KEYS[3]
local budget, ttl_ms, overhead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = tonumber(redis.call('GET', BYTES) or 0)

local function forget(digest)
  kept = kept - redis.call('HSTRLEN', VALUES, digest) - overhead
  redis.call('HDEL', VALUES, digest)
end

for i = 5, #ARGV, 2 do
  if redis.call('HSETNX', VALUES, ARGV[i], ARGV[i + 1]) == 1 then
    kept = kept + #ARGV[i + 1] + overhead
  end
  redis.call('ZADD', TIMES, now_ms, ARGV[i])
end
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', TIMES, '-inf', now_ms - ttl_ms, 'LIMIT', 0, 1000)) do
  forget(digest)
  redis.call('ZREM', TIMES, digest)
end
while kept > budget do
  local oldest = redis.call('ZPOPMIN', TIMES)
  if not oldest[1] then break end
  forget(oldest[1])
end
redis.call('SET', BYTES, kept)
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
return kept
