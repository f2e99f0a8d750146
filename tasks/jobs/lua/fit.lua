#!lua flags=allow-oom
-- A job that waits for a worker with its model gets its turn again, if this is one. Repeatable.
-- Answers OK, OTHER (it began with another model) or GONE
-- include: _job
local job = read_job()
if not job then
  redis.call('ZREM', MISFITS, job_id)
  return 'GONE'
end
if not fits(job, fingerprint) then return 'OTHER' end
redis.call('ZREM', MISFITS, job_id)
if not job.misfit then return 'OK' end
redis.call('HDEL', JOB, 'misfit')
job.misfit = nil
enter_ready(job)
announce(job)
return 'OK'
