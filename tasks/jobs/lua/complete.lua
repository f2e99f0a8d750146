#!lua flags=allow-oom
-- Store a chunk's result and count it, once; the last chunk ends the job. The first writer wins: a result is a result even
-- if its lease ran out, and a worker that claimed the chunk since stops at its next heartbeat.
-- Answers OK, DUP or GONE
-- include: _job
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk then return 'GONE' end
if ENDED[job.state] or chunk.state == 'done' or chunk.state == 'dropped' or fence <= (chunk.floor or 0) then
  return 'DUP'
end
-- A chunk that waits again is dropped with the rest when the job is being cancelled.
if job.state == 'cancelling' and chunk.state ~= 'claimed' then return 'DUP' end

-- A worker that was frozen while the job took to another model.
if not fits(job, fingerprint) then return 'DUP' end

if chunk.state == 'claimed' then add(job, 'claimed', -1) end
if chunk.state == 'pending' then
  redis.call('LREM', PENDING, 1, number)
  if redis.call('LLEN', PENDING) == 0 then leave_ready() end
end
let_go(number)

if pointer == 'redis' then redis.call('SET', RESULT, frame, 'PXAT', job.expires_ms) end
-- Texts are kept only while an item of theirs may have to be computed again.
if failed == 0 then
  redis.call('UNLINK', INPUT)
  keep(0 - (job.input_bytes or 0) * chunk.items / job.total)
end
keep((pointer == 'redis' and size_bytes or 0) - (chunk.pointer == 'redis' and chunk.size or 0))

local first_time = not chunk.redo
chunk.state, chunk.pointer, chunk.size, chunk.redo = 'done', pointer, size_bytes, nil
chunk.completed, chunk.failed = (chunk.completed or 0) + completed, failed
chunk.truncated, chunk.spent = (chunk.truncated or 0) + truncated, (chunk.spent or 0) + tokens
chunk.nonce, chunk.worker, chunk.marked, chunk.progress, chunk.deaths, chunk.delay = nil, nil, nil, nil, nil, nil
chunk.failures, chunk.reason = nil, nil
write_chunk(number, chunk)

-- The chunk was charged by its estimate. Something is charged in any case: what is cached takes a turn, too.
charge(job, math.max(tokens, chunk.tokens / 8) - chunk.tokens)
add(job, 'completed', completed)
add(job, 'failed', failed)
redis.call('HINCRBY', JOB, 'truncated', truncated)
redis.call('HINCRBY', JOB, 'tokens', tokens)
tally('items:completed', completed)
tally('items:failed', failed)
tally('tokens', tokens)
redis.call('HINCRBY', MINUTE, 'tokens', tokens)
redis.call('PEXPIRE', MINUTE, 7200000)
redis.call('HINCRBY', HOUR, 'items', completed + failed)
for code, count in pairs(cjson.decode(failures)) do redis.call('HINCRBY', HOUR, 'failed:' .. code, count) end
redis.call('PEXPIRE', HOUR, 90000000)
leave_queue(completed + failed)
if cached > 0 then redis.call('HINCRBY', JOB, 'cached', cached) end
add(job, 'chunks_done', 1)
if first_time then
  redis.call('HINCRBY', JOB, 'done_estimate', chunk.tokens)
  unreserve(job.result_bytes * chunk.items / job.total)
end
if error ~= '' then redis.call('HSETNX', JOB, 'error', error) end

-- Tokens of the last minute in steps of ten seconds, for speed and the time left.
local recent = cjson.decode(redis.call('HGET', JOB, 'recent') or '[]')
local step = math.floor(NOW_MS / 10000)
if recent[#recent] and recent[#recent][1] == step then
  recent[#recent][2] = recent[#recent][2] + tokens
else
  table.insert(recent, { step, tokens })
  if #recent > 7 then table.remove(recent, 1) end
end
redis.call('HSET', JOB, 'recent', cjson.encode(recent))

settle(job)
announce(job)
return 'OK'
