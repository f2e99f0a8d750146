#!lua flags=allow-oom
-- A worker takes a chunk. The attempt is counted here, before the device is touched.
-- Answers {code} or, for OK and POISON, {code, fence, chunk (JSON), operation, model, params, outside, tenant, key}
-- include: _job
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk then
  let_go(number)
  return { 'GONE' }
end

local function claimed(code)
  local record = redis.call('HMGET', JOB, 'operation', 'model', 'params', 'outside', 'tenant', 'key')
  return { code, chunk.fence, cjson.encode(chunk), record[1], record[2], record[3], record[4], record[5], record[6] }
end

local function verdict()
  local ceiling = max_attempts + 2 * (chunk.poison and #chunk.poison or 0)
  return (chunk.attempts > ceiling or (chunk.failures or 0) >= max_failures) and 'POISON' or 'OK'
end

-- The reply to this very call was lost and the client asks again.
if chunk.state == 'claimed' and chunk.nonce == nonce then
  return claimed(verdict())
end
if chunk.state == 'done' then return { 'DONE' } end
overdue(job)
if ENDED[job.state] or job.state == 'cancelling' or job.state == 'paused' then return { 'STOP' } end
-- A pending chunk has had a ticket before and will get another one: this message is an old copy.
if chunk.state == 'pending' then return { 'BUSY' } end
if chunk.state == 'claimed' then
  if tonumber(redis.call('ZSCORE', INFLIGHT, entry(number)) or 0) > NOW_MS then return { 'BUSY' } end
  count_death(job, number, chunk)
  add(job, 'claimed', -1)
end
if not fits(job, fingerprint) then
  if not job.misfit then wait_for_model(job) end
  put_back(job, number, chunk)
  return { 'MISFIT' }
end

-- The fence is a time, so that a Redis which lost its last second of writes does not issue the same one twice.
set(job, 'fence', math.max(NOW_MS, job.fence + 1))
chunk.state, chunk.fence, chunk.nonce, chunk.worker = 'claimed', job.fence, nonce, worker_id
chunk.attempts = (chunk.attempts or 0) + 1
chunk.marked, chunk.progress, chunk.delay = nil, nil, nil
write_chunk(number, chunk)
hold(number, NOW_MS + lease_ms)
add(job, 'claimed', 1)
if job.state == 'queued' then
  set(job, 'state', 'running')
  if not job.started_ms then set(job, 'started_ms', NOW_MS) end
  note(job, 'started', { worker = worker_id })
  announce(job)
end
return claimed(verdict())
