#!lua flags=allow-oom
-- Look up values that were computed before. What is older than its time is not found, whether it was evicted yet or not.
-- KEYS 1 values by digest, 2 digests by the time (ms) at which they were put, 3 counts of hits and misses
-- ARGV 1 how long a value holds (ms), then digests
-- Answers a value or nil for each digest
local time = redis.call('TIME')
local since_ms = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
local digests = { unpack(ARGV, 2) }
local times = redis.call('ZMSCORE', KEYS[2], unpack(digests))
local values = redis.call('HMGET', KEYS[1], unpack(digests))
local hits = 0
for i, put_ms in ipairs(times) do
  if not put_ms or tonumber(put_ms) <= since_ms then values[i] = false end
  if values[i] then hits = hits + 1 end
end
redis.call('HINCRBY', KEYS[3], 'hit', hits)
redis.call('HINCRBY', KEYS[3], 'miss', #digests - hits)
redis.call('PEXPIRE', KEYS[3], ARGV[1])
return values
