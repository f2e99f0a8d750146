#!lua
-- Create a batch that is to be validated. Running it twice with the same id changes nothing.
-- Answers {CREATED | EXISTS | MISMATCH, batch id}
if redis.call('EXISTS', BATCH) == 1 then
  return { 'CREATED', batch_id }
end
if payload_hash ~= '' then
  local known = redis.call('GET', IDEMPOTENCY)
  if known then
    local first = cjson.decode(known)
    return { first.hash == payload_hash and 'EXISTS' or 'MISMATCH', first.batch }
  end
  redis.call('SET', IDEMPOTENCY, cjson.encode({ batch = batch_id, hash = payload_hash }), 'PX', keep_ms)
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', BATCH, 'state', 'validating', 'created_ms', string.format('%.0f', now_ms),
  'deadline_ms', string.format('%.0f', now_ms + window_ms), 'held_until_ms', 0, unpack(fields))
redis.call('PEXPIRE', BATCH, keep_ms)
redis.call('ZADD', ACTIVE, string.format('%.0f', now_ms), member)
redis.call('ZADD', LISTED, 0, batch_id)
for _, key in ipairs({ ACTIVE, LISTED }) do
  redis.call('PEXPIRE', key, string.format('%.0f', math.max(redis.call('PTTL', key), keep_ms)))
end
return { 'CREATED', batch_id }
