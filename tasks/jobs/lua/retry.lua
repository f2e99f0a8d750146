#!lua flags=allow-oom
-- Queue the failed items of an ended job again, and only those.
-- Answers OK, GONE, NOTHING (no item failed), or CONFLICT (it has not ended by itself)
-- include: _job
local job = read_job()
if not job then return 'GONE' end
if job.state ~= 'succeeded' and job.state ~= 'failed' then return 'CONFLICT' end
if job.failed == 0 then return 'NOTHING' end
set(job, 'state', 'running')
note(job, 'retried', { failed = job.failed })
if params ~= '' then redis.call('HSET', JOB, 'params', params) end
set(job, 'retried', 1)
redis.call('HDEL', JOB, 'ended_ms', 'error', 'deadline_ms', 'delivery')
-- An end that was not sent yet is none any more; the next one is sent.
redis.call('ZREM', WEBHOOKS, job_id)
for number = 0, job.chunks - 1 do
  local chunk = read_chunk(number)
  if (chunk.failed or 0) > 0 then
    add(job, 'failed', -chunk.failed)
    add(job, 'chunks_done', -1)
    chunk.state, chunk.redo, chunk.failed = 'pending', chunk.failed, 0
    -- A claim from before must not complete the repeat.
    chunk.floor, chunk.attempts, chunk.poison = job.fence, 0, nil
    write_chunk(number, chunk)
    redis.call('RPUSH', PENDING, number)
  end
end
redis.call('PEXPIREAT', PENDING, job.expires_ms)
enter_ready(job)
announce(job)
return 'OK'
