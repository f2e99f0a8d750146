#!lua flags=no-writes
-- Read which workers are ready, for many models in one trip.
-- Returns for each model a list of descriptions as JSON.
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Nobody announces himself for ten minutes: the clock stepped back, and the worker may be dead.
local now_ms, latest_ms = string.format('(%.0f', ms), string.format('%.0f', ms + 600000)
local answer = {}
for i = 1, #MODELS, 2 do
  local infos = {}
  for _, worker in ipairs(redis.call('ZRANGE', MODELS[i], now_ms, latest_ms, 'BYSCORE')) do
    infos[#infos + 1] = redis.call('HGET', MODELS[i + 1], worker) or nil
  end
  answer[#answer + 1] = infos
end
return answer
