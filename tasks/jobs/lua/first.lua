#!lua flags=allow-oom
-- Let a job go ahead of all others of its lane until it is done; of several, the last one that was put first. Repeatable.
-- Answers OK, GONE, or CONFLICT (it has ended or is ending)
-- include: _job
local job = read_job()
if not job then return 'GONE' end
if ENDED[job.state] or job.state == 'cancelling' then return 'CONFLICT' end
-- Below every other virtual time, and so far below that no work brings it up (see `enter_ready`).
set(job, 'vtime', -1000 * NOW_MS)
if redis.call('ZSCORE', TURNS, job_id) then
  rank(job, 'XX')
  reorder(go_first, job)
end
note(job, 'put_first')
announce(job)
return 'OK'
