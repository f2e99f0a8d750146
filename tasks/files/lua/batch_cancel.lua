#!lua flags=allow-oom
-- Ask for the end of a batch; the scheduler stops its jobs. Repeatable.
-- Answers the state that it has now: cancelling, or the one in which it ended; '' when there is no such batch.
local state = redis.call('HGET', BATCH, 'state')
if not state then
  return ''
end
if state == 'validating' or state == 'in_progress' or state == 'finalizing' then
  local time = redis.call('TIME')
  local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', BATCH, 'state', 'cancelling', 'cancelling_ms', now_ms)
  redis.call('ZADD', ACTIVE, 'LT', now_ms, member)
  return 'cancelling'
end
return state
