#!lua flags=allow-oom
-- Note one attempt to tell a job's end: it was told, or it is tried again later, or it is given up. Whoever was told once
-- stays told, whatever a slower attempt says afterwards.
-- KEYS 1 job record, 2 events, 3 ends that a webhook has to be told of
-- ARGV 1 job id, 2 number of the end, 3 delivered | retrying | failed, 4 HTTP status or '', 5 a sentence or '',
--      6 time until the next attempt (ms)
-- Answers OK, GONE (no such job, or it runs again) or OTHER (another end is to be told by now)
local job_id, status = ARGV[1], ARGV[3]
local line = redis.call('HGET', KEYS[1], 'delivery')
if not line then
  redis.call('ZREM', KEYS[3], job_id)
  return 'GONE'
end
local delivery = cjson.decode(line)
if delivery.number ~= tonumber(ARGV[2]) then return 'OTHER' end
if delivery.status == 'delivered' then return 'OK' end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
delivery.status, delivery.answer, delivery.error, delivery.next_ms = status, tonumber(ARGV[4]), ARGV[5], nil
delivery.attempts, delivery.last_ms = delivery.attempts + 1, now_ms
if status == 'retrying' then
  delivery.next_ms = now_ms + ARGV[6]
  redis.call('ZADD', KEYS[3], delivery.next_ms, job_id)
else
  redis.call('ZREM', KEYS[3], job_id)
end
redis.call('HSET', KEYS[1], 'delivery', cjson.encode(delivery))
-- Readers see the attempt: the job has a new version, as after every visible change (see `announce` in _job).
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('XADD', KEYS[2], 'MAXLEN', 1, version .. '-0', 'state', redis.call('HGET', KEYS[1], 'state'))
redis.call('PEXPIRE', KEYS[2], math.max(1, redis.call('PTTL', KEYS[1])))
return 'OK'
