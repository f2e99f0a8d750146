#!lua flags=allow-oom
-- Settle one overdue ticket or claim; any process may do it. Repeatable. With a worker's ID: take back what that worker
-- holds, overdue or not.
-- Answers BACK (the chunk waits again) or NONE
-- include: _job
local until_ms = tonumber(redis.call('ZSCORE', INFLIGHT, entry(number)) or NOW_MS + 1)
if worker_id == '' and until_ms > NOW_MS then return 'NONE' end
local job = read_job()
local chunk = job and read_chunk(number)
if worker_id ~= '' and not (chunk and chunk.state == 'claimed' and chunk.worker == worker_id) then return 'NONE' end
if not chunk or ENDED[job.state] then
  let_go(number)
  return 'NONE'
end
overdue(job)
if chunk.state == 'claimed' then
  count_death(job, number, chunk)
  end_claim(job, number, chunk)
  return 'BACK'
end
if chunk.state == 'ticket' and (job.state == 'queued' or job.state == 'running') then
  put_back(job, number, chunk)
  return 'BACK'
end
let_go(number)
return 'NONE'
