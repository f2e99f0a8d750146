#!lua flags=allow-oom
-- Record one attempt to deliver a job's end: delivered, to be retried, or failed. What was delivered once stays so,
-- whatever a slower attempt reports afterwards.
-- Answers OK, GONE (no such job, or it runs again) or OTHER (another end is to be sent by now)
local line = redis.call('HGET', JOB, 'delivery')
if not line then
  redis.call('ZREM', DUE, job_id)
  return 'GONE'
end
local delivery = cjson.decode(line)
if delivery.number ~= number then return 'OTHER' end
if delivery.status == 'delivered' then return 'OK' end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
delivery.status, delivery.answer, delivery.error, delivery.next_ms = status, answer, error, nil
delivery.attempts, delivery.last_ms = delivery.attempts + 1, now_ms
if status == 'retrying' then
  delivery.next_ms = now_ms + delay_ms
  redis.call('ZADD', DUE, delivery.next_ms, job_id)
  redis.call('ZADD', TENANTS, 'LT', delivery.next_ms, tenant)
else
  redis.call('ZREM', DUE, job_id)
end
redis.call('HSET', JOB, 'delivery', cjson.encode(delivery))
-- Readers see the attempt: the job has a new version, as after every visible change (see `announce` in _job).
local version = redis.call('HINCRBY', JOB, 'version', 1)
redis.call('XADD', EVENTS, 'MAXLEN', 1, version .. '-0', 'state', redis.call('HGET', JOB, 'state'))
redis.call('PEXPIRE', EVENTS, math.max(1, redis.call('PTTL', JOB)))
return 'OK'
