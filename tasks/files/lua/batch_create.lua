#!lua
-- Create a batch that is to be validated. Running it twice with the same id changes nothing.
-- KEYS[1] hash    the batch record (tasks.keys.batch)
-- KEYS[2] zset    batches that are not done with, by the ms at which somebody should look (batches_active)
-- KEYS[3] zset    the tenant's batches (tenant_batches)
-- KEYS[4] string  idempotency key (idempotency)
-- ARGV[1] batch id, ARGV[2] member of KEYS[2], ARGV[3] ms that the batch may take, ARGV[4] ms that it is kept,
-- ARGV[5] hash of the payload or '' without an idempotency key; then fields and values of the record
-- Answers {CREATED | EXISTS | MISMATCH, batch id}
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'CREATED', ARGV[1] }
end
if ARGV[5] ~= '' then
  local known = redis.call('GET', KEYS[4])
  if known then
    local first = cjson.decode(known)
    return { first.hash == ARGV[5] and 'EXISTS' or 'MISMATCH', first.batch }
  end
  redis.call('SET', KEYS[4], cjson.encode({ batch = ARGV[1], hash = ARGV[5] }), 'PX', ARGV[4])
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'validating', 'created_ms', string.format('%.0f', now_ms),
  'deadline_ms', string.format('%.0f', now_ms + ARGV[3]), 'held_until_ms', 0, unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms), ARGV[2])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
for i = 2, 3 do
  redis.call('PEXPIRE', KEYS[i], string.format('%.0f', math.max(redis.call('PTTL', KEYS[i]), ARGV[4])))
end
return { 'CREATED', ARGV[1] }
