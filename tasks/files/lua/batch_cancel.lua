#!lua flags=allow-oom
-- Ask for the end of a batch; whoever looks after it next stops its jobs. Repeatable.
-- KEYS[1] hash   the batch record (tasks.keys.batch)
-- KEYS[2] zset   batches that are not done with, by the ms at which somebody should look (batches_active)
-- ARGV[1] member of KEYS[2]
-- Answers the state that it has now: cancelling, or the one in which it ended; '' when there is no such batch.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return ''
end
if state == 'validating' or state == 'in_progress' or state == 'finalizing' then
  local time = redis.call('TIME')
  local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', KEYS[1], 'state', 'cancelling', 'cancelling_ms', now_ms)
  redis.call('ZADD', KEYS[2], 'LT', now_ms, ARGV[1])
  return 'cancelling'
end
return state
