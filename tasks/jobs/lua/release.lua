#!lua flags=allow-oom
-- A worker gives a chunk back without a result: because it is going away (the attempt does not count), or because
-- computing failed as a whole (it does).
-- Answers OK, or LOST if the claim did not hold any more
-- include: _job
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk or chunk.state ~= 'claimed' or chunk.fence ~= fence then return 'LOST' end

if counts then
  chunk.failures, chunk.reason = (chunk.failures or 0) + 1, reason
  note(job, 'chunk_failed', { chunk = number, worker = chunk.worker, attempt = chunk.attempts, reason = reason })
else
  chunk.attempts = chunk.attempts - 1
  charge(job, 0 - chunk.tokens)
end
if delay_ms == 0 or job.state ~= 'running' then
  end_claim(job, number, chunk)
  return 'OK'
end
-- The reaper puts it back when its time has come.
add(job, 'claimed', -1)
chunk.state, chunk.delay, chunk.nonce, chunk.worker, chunk.marked, chunk.progress = 'ticket', delay_ms, nil, nil, nil, nil
write_chunk(number, chunk)
hold(number, NOW_MS + delay_ms)
return 'OK'
