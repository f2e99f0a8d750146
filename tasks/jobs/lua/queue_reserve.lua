#!lua
-- Reserve room in a tenant's queue for several jobs that are about to be created: for all of them, or for none. Repeatable.
-- Answers nothing, or how many items wait already when the new ones do not fit
-- include: _queue
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local waiting, wanted, new = count_queued(now_ms, ttl_ms), 0, {}
for _, pair in ipairs(cjson.decode(jobs)) do
  if redis.call('HEXISTS', QUEUED, pair[1]) == 0 then
    new[#new + 1] = pair
    wanted = wanted + pair[2]
  end
end
if waiting + wanted > queue_limit then return waiting end
for _, pair in ipairs(new) do join_queue(pair[1], pair[2], now_ms, lane_ttl_ms) end
return nil
