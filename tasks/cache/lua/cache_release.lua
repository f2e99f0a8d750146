#!lua flags=allow-oom
-- Give claims back, whether their values were kept or could not be computed.
-- KEYS 1 claims by digest, as time (ms) and owner
-- ARGV 1 owner, then digests
-- Answers how many claims were still the owner's
local digests = { unpack(ARGV, 2) }
local mine = {}
for i, claim in ipairs(redis.call('HMGET', KEYS[1], unpack(digests))) do
  if claim and claim:match('^%d+ (.*)$') == ARGV[1] then mine[#mine + 1] = digests[i] end
end
return #mine > 0 and redis.call('HDEL', KEYS[1], unpack(mine)) or 0
