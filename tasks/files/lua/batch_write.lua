#!lua flags=allow-oom
-- Move a batch on under a hold: from one of some states to another, with what is known now. A batch that is being
-- cancelled stays so until its end, whatever else was reached. Running it twice changes nothing.
-- KEYS[1] hash   the batch record (tasks.keys.batch)
-- ARGV[1] name of the holder, ARGV[2] states that it may come from, comma-separated, ARGV[3] the state that it goes to;
-- then fields and values of the record
-- Answers the state that it has now, or '' when the hold is lost or the state is none of those.
local TERMINAL = { completed = true, failed = true, expired = true, cancelled = true }
local state, holder = unpack(redis.call('HMGET', KEYS[1], 'state', 'holder'))
if not state or holder ~= ARGV[1] then
  return ''
end
-- A client that lost our answer asks again: what it wanted is reached already.
if state == ARGV[3] or (TERMINAL[state] and TERMINAL[ARGV[3]]) then
  if not string.find(',' .. ARGV[2] .. ',', ',' .. state .. ',', 1, true) then
    return state
  end
end
local allowed = false
for name in string.gmatch(ARGV[2], '[^,]+') do
  allowed = allowed or name == state
end
if not allowed then
  return ''
end
local goal = ARGV[3]
if state == 'cancelling' then
  goal = TERMINAL[goal] and 'cancelled' or 'cancelling'
end
local time = redis.call('TIME')
if #ARGV > 3 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 4))
end
redis.call('HSET', KEYS[1], 'state', goal)
redis.call('HSETNX', KEYS[1], goal .. '_ms', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return goal
