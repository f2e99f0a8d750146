#!lua flags=allow-oom
-- Resume a paused job. Repeatable.
-- Answers OK, GONE, or CONFLICT (it has ended or is ending)
-- include: _job
local job = read_job()
if not job then return 'GONE' end
if job.state == 'queued' or job.state == 'running' then
  enter_ready(job)
  return 'OK'
end
if job.state ~= 'paused' then return 'CONFLICT' end
set(job, 'state', job.started_ms and 'running' or 'queued')
note(job, 'resumed')
enter_ready(job)
announce(job)
return 'OK'
