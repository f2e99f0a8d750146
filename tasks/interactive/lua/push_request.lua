#!lua flags=allow-oom
-- Admit interactive requests to a lane's list, all or some, in their order.
-- A Redis that is full of jobs still serves small requests: the lane's limit bounds their bytes too, since a token of
-- their weight stands for 64 bytes at most (tasks/interactive/protocol.py).
-- Returns three integers for each request that was refused: its place (0 is the first), then 1 0: no worker is ready,
-- or 2 n: the lane is full for about n ms.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}

local function refuse(i, why, value)
  answer[#answer + 1] = i - 1
  answer[#answer + 1] = why
  answer[#answer + 1] = value
end

-- See ready_workers.lua for the upper end.
local first_ms, latest_ms = string.format('(%.0f', now_ms), string.format('%.0f', now_ms + 600000)
local live = redis.call('ZRANGE', WORKERS, first_ms, latest_ms, 'BYSCORE')
if #live == 0 then
  for i = 1, #requests do
    refuse(i, 1, 0)
  end
  return answer
end

-- While the list is empty, what is counted is in the hands of workers: they may have died, so it refuses nothing, and
-- they may put it back, so it stays counted. The next settlement that finds the list empty forgets it.
local counted = tonumber(redis.call('HGET', LOAD, 'waiting') or 0)
local waiting = 0
if redis.call('LLEN', WAITING_LIST) > 0 then
  waiting = counted
end

local function milliseconds_to_drain(tokens)
  local rate = 0
  for _, worker in ipairs(live) do
    local info = redis.call('HGET', INFOS, worker)
    if info then
      rate = rate + (tonumber(cjson.decode(info).tokens_per_s) or 0)
    end
  end
  if rate <= 0 then
    return 1000
  end
  return math.ceil(tokens * 1000 / rate)
end

local keep_ms = 0
for i = 1, #requests do
  local left_ms, tokens = struct.unpack('<dI', requests[i])
  -- An empty lane takes a request of any size, else one above the limit would always be refused.
  if waiting > 0 and waiting + tokens > max_tokens then
    refuse(i, 2, milliseconds_to_drain(waiting))
  else
    redis.call('RPUSH', WAITING_LIST, struct.pack('<d', now_ms + left_ms) .. string.sub(requests[i], 9))
    waiting = waiting + tokens
    counted = counted + tokens
    keep_ms = math.max(keep_ms, left_ms)
  end
end

if keep_ms > 0 then
  -- After the last deadline nothing in the list is wanted.
  keep_ms = math.ceil(math.max(keep_ms, redis.call('PTTL', WAITING_LIST)))
  redis.call('HSET', LOAD, 'waiting', string.format('%.0f', counted))
  redis.call('PEXPIRE', WAITING_LIST, keep_ms)
  redis.call('PEXPIRE', LOAD, keep_ms)
end
return answer
