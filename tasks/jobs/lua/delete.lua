#!lua flags=allow-oom
-- Forget a job. From here on every claim of it is told GONE; the caller removes inputs and results.
-- KEYS 1-11 see _job, 12 the tenant's jobs
-- ARGV 1-2 see _job
-- Answers OK
-- include: _job
redis.call('ZREM', KEYS[12], JOB_ID)
redis.call('ZREM', READY, JOB_ID)
redis.call('ZREM', DEADLINES, JOB_ID)
redis.call('ZREM', WEBHOOKS, JOB_ID)
for _, member in ipairs(redis.call('ZRANGE', INFLIGHT, 0, -1)) do
  if member:match('^(.*):%d+$') == JOB_ID then redis.call('ZREM', INFLIGHT, member) end
end
unreserve(math.huge)
redis.call('UNLINK', JOB, CHUNKS, PENDING, EVENTS)
return 'OK'
