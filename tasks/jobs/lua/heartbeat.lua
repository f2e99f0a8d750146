#!lua flags=allow-oom
-- Renew a lease, if the claim still holds and its work has moved; say whether to stop.
-- KEYS 1-11 see _job
-- ARGV 1-2 see _job, 3 chunk number, 4 fence, 5 progress since the claim, 6 lease (ms)
-- Answers GO or STOP
-- include: _job
local number, progress = ARGV[3], tonumber(ARGV[5])
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk or chunk.state ~= 'claimed' or chunk.fence ~= tonumber(ARGV[4]) then return 'STOP' end
overdue(job)
if job.state ~= 'running' then return 'STOP' end
if progress > (chunk.progress or 0) then
  chunk.progress = progress
  write_chunk(number, chunk)
  hold(number, NOW_MS + tonumber(ARGV[6]))
end
return 'GO'
