#!lua flags=allow-oom
-- Advance a batch under its lock: from one of some states to another, with new fields. A batch that is being
-- cancelled stays so until its end, whatever else was reached. Running it twice changes nothing.
-- Answers the state that it has now, or '' when the lock is lost or the state is none of those.
local TERMINAL = { completed = true, failed = true, expired = true, cancelled = true }
local state, held_by = unpack(redis.call('HMGET', BATCH, 'state', 'holder'))
if not state or held_by ~= holder then
  return ''
end
-- A client that lost the answer asks again: the state is reached already.
if state == goal or (TERMINAL[state] and TERMINAL[goal]) then
  if not string.find(',' .. sources .. ',', ',' .. state .. ',', 1, true) then
    return state
  end
end
local allowed = false
for name in string.gmatch(sources, '[^,]+') do
  allowed = allowed or name == state
end
if not allowed then
  return ''
end
if state == 'cancelling' then
  goal = TERMINAL[goal] and 'cancelled' or 'cancelling'
end
local time = redis.call('TIME')
if #fields > 0 then
  redis.call('HSET', BATCH, unpack(fields))
end
redis.call('HSET', BATCH, 'state', goal)
redis.call('HSETNX', BATCH, goal .. '_ms', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return goal
