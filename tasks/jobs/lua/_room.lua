-- Shared piece: whether Redis has room. Put before the scripts that admit new bytes.
-- Bytes that accepted jobs still need for their results are reserved, so that completions always pass.

-- The bytes that new jobs may fill: 70% of maxmemory, or the setting where Redis has no limit. 0: no limit.
local function byte_limit(info, store_max_bytes)
  local max = tonumber(info:match('maxmemory:(%d+)'))
  if max > 0 then return math.floor(max * 0.7) end
  return store_max_bytes
end

-- Jobs that expired before they ended never gave their reservation back.
local function purge_reservations(reserved, reserved_until, now_ms)
  for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', reserved_until, '-inf', now_ms, 'LIMIT', 0, 100)) do
    local held = tonumber(redis.call('HGET', reserved, job_id) or 0)
    redis.call('HINCRBY', reserved, 'total', 0 - held)
    redis.call('HDEL', reserved, job_id)
    redis.call('ZREM', reserved_until, job_id)
  end
end

-- Answers nil, 'TOO_LARGE' (size_bytes can never fit) or 'FULL' (new_bytes do not fit now).
local function refusal(reserved, reserved_until, store_max_bytes, size_bytes, new_bytes)
  local info = redis.call('INFO', 'memory')
  local limit = byte_limit(info, store_max_bytes)
  if limit == 0 then return nil end
  if size_bytes > limit then return 'TOO_LARGE' end
  local time = redis.call('TIME')
  purge_reservations(reserved, reserved_until, time[1] * 1000)
  local used = tonumber(info:match('used_memory:(%d+)'))
  local promised = tonumber(redis.call('HGET', reserved, 'total') or 0)
  if used + promised + new_bytes > limit then return 'FULL' end
  return nil
end
