#!lua flags=allow-oom
-- Pause a job: its tickets go back at once, its claims at their next heartbeat. Repeatable.
-- Answers OK, GONE, or CONFLICT (it has ended or is ending)
-- include: _job
local job = read_job()
if not job then return 'GONE' end
if job.state == 'paused' then return 'OK' end
if job.state ~= 'queued' and job.state ~= 'running' then return 'CONFLICT' end
set(job, 'state', 'paused')
note(job, 'paused')
leave_ready()
for _, member in ipairs(redis.call('ZREVRANGE', INFLIGHT, 0, -1)) do
  local owner, number = member:match('^(.*):(%d+)$')
  local chunk = owner == job_id and read_chunk(number)
  if chunk and chunk.state == 'ticket' then put_back(job, number, chunk) end
end
announce(job)
return 'OK'
