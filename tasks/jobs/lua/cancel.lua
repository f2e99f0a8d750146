#!lua flags=allow-oom
-- Cancel a job, or end one whose deadline has passed. Repeatable.
-- KEYS 1-11 see _job
-- ARGV 1-2 see _job, 3 cancelled | expired
-- Answers OK, ENDED (it had ended by itself) or GONE
-- include: _job
local job = read_job()
if not job then
  redis.call('ZREM', DEADLINES, JOB_ID)
  return 'GONE'
end
if job.state == 'cancelling' or job.state == 'cancelled' then return 'OK' end
if ENDED[job.state] then return 'ENDED' end
if ARGV[3] == 'expired' then
  overdue(job)
else
  begin_ending(job, 'cancelled')
end
return 'OK'
