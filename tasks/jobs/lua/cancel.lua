#!lua flags=allow-oom
-- Cancel a job, or end one whose deadline has passed. Repeatable.
-- Answers OK, ENDED (it had ended by itself) or GONE
-- include: _job
local job = read_job()
if not job then
  redis.call('ZREM', DEADLINES, job_id)
  return 'GONE'
end
if job.state == 'cancelling' or job.state == 'cancelled' then return 'OK' end
if ENDED[job.state] then return 'ENDED' end
if ending == 'expired' then
  overdue(job)
else
  begin_ending(job, 'cancelled')
end
return 'OK'
