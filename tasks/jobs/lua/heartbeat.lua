#!lua flags=allow-oom
-- Renew a lease, if the claim still holds and the device made progress; answer whether to stop.
-- Answers GO or STOP
-- include: _job
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk or chunk.state ~= 'claimed' or chunk.fence ~= fence then return 'STOP' end
overdue(job)
if job.state ~= 'running' then return 'STOP' end
if progress > (chunk.progress or 0) then
  chunk.progress = progress
  write_chunk(number, chunk)
  hold(number, NOW_MS + lease_ms)
end
return 'GO'
