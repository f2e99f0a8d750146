-- Shared piece: whether Redis has room. Put before the scripts that admit new bytes.
-- Bytes that accepted jobs still need for their results are reserved, so that completions always pass.
local FREE_PARTS = 2

-- The bytes that new jobs may fill: 70% of maxmemory, or the setting where Redis has no limit. 0: no limit.
local function byte_limit(info)
  local max = tonumber(info:match('maxmemory:(%d+)'))
  if max > 0 then return math.floor(max * 0.7) end
  return store_max_bytes
end

-- Jobs that expired before they ended never gave back what was counted for them.
local function purge(amounts, until_ms, now_ms)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', until_ms, '-inf', now_ms, 'LIMIT', 0, 100)) do
    redis.call('HINCRBY', amounts, 'total', 0 - tonumber(redis.call('HGET', amounts, id) or 0))
    redis.call('HDEL', amounts, id)
    redis.call('ZREM', until_ms, id)
  end
end

-- Note what a job of the tenant keeps, or will.
local function hold_bytes(id, bytes, until_ms)
  redis.call('HINCRBY', HELD, 'total', bytes - tonumber(redis.call('HGET', HELD, id) or 0))
  redis.call('HSET', HELD, id, bytes)
  redis.call('ZADD', HELD_UNTIL, until_ms, id)
  for _, key in ipairs({ HELD, HELD_UNTIL }) do redis.call('PEXPIRE', key, lane_ttl_ms) end
end

-- Answers nil, 'TOO_LARGE' (size_bytes can never fit), 'TOO_MUCH' (nor in the tenant's quota), 'FULL' (new_bytes do not
-- fit now) or 'OVER' (nor beside what the tenant's jobs keep), and what these keep.
-- A tenant may keep so many parts for each that it leaves free (dynamic thresholds, Choudhury and Hahne 1998): two
-- thirds of the store if it is alone, and less beside others, so that a newcomer always finds room.
local function refusal(id, size_bytes, new_bytes)
  local now_ms = redis.call('TIME')[1] * 1000
  purge(HELD, HELD_UNTIL, now_ms)
  local kept = tonumber(redis.call('HGET', HELD, 'total') or 0) - tonumber(redis.call('HGET', HELD, id) or 0)
  if quota_bytes and size_bytes > quota_bytes then return 'TOO_MUCH', kept end
  if quota_bytes and kept + size_bytes > quota_bytes then return 'OVER', kept end
  local info = redis.call('INFO', 'memory')
  local limit = byte_limit(info)
  if limit == 0 then return nil end
  if size_bytes > limit then return 'TOO_LARGE', kept end
  purge(RESERVED, RESERVED_UNTIL, now_ms)
  local used = tonumber(info:match('used_memory:(%d+)'))
  local promised = tonumber(redis.call('HGET', RESERVED, 'total') or 0)
  local free = limit - used - promised - new_bytes
  if free < 0 then return 'FULL', kept end
  if fair and kept + size_bytes > FREE_PARTS * free then return 'OVER', kept end
  return nil
end
