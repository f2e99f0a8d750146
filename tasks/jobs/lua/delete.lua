#!lua flags=allow-oom
-- Delete a job. From here on every claim of it is answered GONE; the caller removes inputs and results.
-- Answers OK
-- include: _job
redis.call('ZREM', TENANT_JOBS, job_id)
redis.call('ZREM', ALL_JOBS, job_id)
leave_ready()
redis.call('ZREM', DEADLINES, job_id)
redis.call('ZREM', LATER, job_id)
redis.call('ZREM', MISFITS, job_id)
redis.call('ZREM', WEBHOOKS, job_id)
for _, member in ipairs(redis.call('ZRANGE', INFLIGHT, 0, -1)) do
  if member:match('^(.*):%d+$') == job_id then redis.call('ZREM', INFLIGHT, member) end
end
redis.call('HDEL', QUEUED, job_id)
unreserve(math.huge)
keep(0 - math.huge)
redis.call('HDEL', HELD, job_id)
redis.call('ZREM', HELD_UNTIL, job_id)
redis.call('UNLINK', JOB, CHUNKS, PENDING, EVENTS, LOG)
return 'OK'
