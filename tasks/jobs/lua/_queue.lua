-- Shared piece: how many items a tenant has in the queue, if its key limits that. Put before the scripts that add to it.

-- Items that wait: a line for each unfinished job, items and time of creation (ms). Jobs that expired before they ended
-- never removed their line.
local function count_queued(now_ms, ttl_ms)
  local waiting, lines = 0, redis.call('HGETALL', QUEUED)
  for i = 1, #lines, 2 do
    local items, created_ms = lines[i + 1]:match('^(%d+) (%d+)$')
    if now_ms - created_ms > ttl_ms then
      redis.call('HDEL', QUEUED, lines[i])
    else
      waiting = waiting + items
    end
  end
  return waiting
end

local function join_queue(id, items, now_ms, ttl_ms)
  redis.call('HSET', QUEUED, id, string.format('%.0f %.0f', items, now_ms))
  redis.call('PEXPIRE', QUEUED, ttl_ms)
end
