#!lua
-- Look up values of a job that were computed before, and claim those that nobody computes, so that two chunks of one job
-- that run at the same moment do not compute the same. A claim lapses with its time: whoever held it may be dead.
-- KEYS 1 values by digest, 2 digests by the time (ms) at which they were put, 3 counts of hits and misses,
--      4 claims by digest, as time (ms) and owner
-- ARGV 1 how long a value holds (ms), 2 owner, 3 how long a claim holds (ms), then digests
-- Answers for each digest its value, 1: it is the owner's to compute, or 0: somebody else computes it
local CLAIMS, owner = KEYS[4], ARGV[2]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local digests = { unpack(ARGV, 4) }
local times = redis.call('ZMSCORE', KEYS[2], unpack(digests))
local values = redis.call('HMGET', KEYS[1], unpack(digests))
local claims = redis.call('HMGET', CLAIMS, unpack(digests))
local mine, hits, misses = {}, 0, 0
for i, digest in ipairs(digests) do
  if times[i] and tonumber(times[i]) > now_ms - ARGV[1] and values[i] then
    hits = hits + 1
  else
    local until_ms, holder = (claims[i] or '0 '):match('^(%d+) (.*)$')
    if holder == owner or tonumber(until_ms) <= now_ms then
      if holder ~= owner then misses = misses + 1 end
      mine[#mine + 1] = digest
      mine[#mine + 1] = string.format('%.0f', now_ms + ARGV[3]) .. ' ' .. owner
      values[i] = 1
    else
      values[i] = 0
    end
  end
end
if #mine > 0 then
  redis.call('HSET', CLAIMS, unpack(mine))
  redis.call('PEXPIRE', CLAIMS, ARGV[3])
end
redis.call('HINCRBY', KEYS[3], 'hit', hits)
redis.call('HINCRBY', KEYS[3], 'miss', misses)
redis.call('PEXPIRE', KEYS[3], ARGV[1])
return values
