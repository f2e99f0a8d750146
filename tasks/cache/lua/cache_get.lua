#!lua flags=allow-oom
-- Look up values that were computed before. What is older than its time is not found, whether it was evicted yet or not.
-- Answers a value or nil for each digest
local time = redis.call('TIME')
local since_ms = time[1] * 1000 + math.floor(time[2] / 1000) - ttl_ms
local times = redis.call('ZMSCORE', TIMES, unpack(digests))
local values = redis.call('HMGET', VALUES, unpack(digests))
local hits = 0
for i, put_ms in ipairs(times) do
  if not put_ms or tonumber(put_ms) <= since_ms then values[i] = false end
  if values[i] then hits = hits + 1 end
end
redis.call('HINCRBY', LOOKUPS, 'hit', hits)
redis.call('HINCRBY', LOOKUPS, 'miss', #digests - hits)
redis.call('PEXPIRE', LOOKUPS, ttl_ms)
return values
