#!lua
-- Create a job, or keep one that was answered at once. Its inputs are stored already.
-- Answers {CREATED | EXISTS | MISMATCH, job id}, {QUEUE_FULL, job id, items that wait} or
-- {FULL | TOO_LARGE | TOO_MUCH | OVER, job id, bytes that the tenant's other jobs keep}
-- include: _room
-- include: _queue
-- include: _job
if redis.call('EXISTS', JOB) == 1 then return { 'CREATED', job_id } end
if payload_hash ~= '' then
  local known = redis.call('GET', IDEMPOTENCY)
  if known then
    local first = cjson.decode(known)
    if first.job ~= replaces then return { first.hash == payload_hash and 'EXISTS' or 'MISMATCH', first.job } end
  end
end

local finished = outcome ~= '' and cjson.decode(outcome)
-- A batch has reserved the places of its jobs before.
local joins = queue_limit and not finished and redis.call('HEXISTS', QUEUED, job_id) == 0
local waiting = joins and count_queued(NOW_MS, ttl_ms) or 0
if joins and waiting + items > queue_limit then return { 'QUEUE_FULL', job_id, waiting } end
local new_bytes = finished and #frame or result_bytes
local refused, kept = refusal(job_id, input_bytes + result_bytes, new_bytes)
if refused then return { refused, job_id, kept } end

local expires_ms = NOW_MS + ttl_ms
local chunks = cjson.decode(table_lines)
redis.call('HSET', JOB, unpack(cjson.decode(fields)))
redis.call('HSET', JOB, 'state', 'queued', 'created_ms', NOW_MS, 'expires_ms', expires_ms, 'chunks', #chunks,
  'chunks_done', 0, 'completed', 0, 'failed', 0, 'truncated', 0, 'tokens', 0, 'done_estimate', 0, 'claimed', 0,
  'vtime', 0, 'fence', 0, 'version', 0, 'result_bytes', result_bytes, 'input_bytes', input_bytes)
redis.call('PEXPIREAT', JOB, expires_ms)
redis.call('ZADD', TENANT_JOBS, NOW_MS, job_id)
redis.call('PEXPIRE', TENANT_JOBS, lane_ttl_ms)
redis.call('ZADD', ALL_JOBS, NOW_MS, job_id)
redis.call('ZREMRANGEBYSCORE', ALL_JOBS, '-inf', NOW_MS - ttl_ms)
redis.call('PEXPIRE', ALL_JOBS, lane_ttl_ms)
redis.call('ZADD', ALL_TENANTS, NOW_MS, tenant)
redis.call('PEXPIRE', ALL_TENANTS, lane_ttl_ms)
redis.call('ZREM', UPLOADS, job_id)
hold_bytes(job_id, finished and #frame or input_bytes + result_bytes, expires_ms)
if payload_hash ~= '' then
  redis.call('SET', IDEMPOTENCY, cjson.encode({ job = job_id, hash = payload_hash }), 'PXAT', expires_ms)
end

-- In slices: one call per chunk would block Redis for long when a job has tens of thousands.
for first = 1, #chunks, 500 do
  local lines, numbers = {}, {}
  for i = first, math.min(first + 499, #chunks) do
    numbers[#numbers + 1] = i - 1
    lines[#lines + 1] = i - 1
    lines[#lines + 1] = chunks[i]
  end
  redis.call('HSET', CHUNKS, unpack(lines))
  if not finished then redis.call('RPUSH', PENDING, unpack(numbers)) end
end
redis.call('PEXPIREAT', CHUNKS, expires_ms)
redis.call('PEXPIREAT', PENDING, expires_ms)

local job = read_job()
note(job, 'created', { items = items, chunks = #chunks })
if finished then
  redis.call('SET', RESULT, frame, 'PXAT', expires_ms)
  local chunk = read_chunk(0)
  chunk.state, chunk.pointer, chunk.size = 'done', 'redis', #frame
  chunk.completed, chunk.failed, chunk.truncated = finished.completed, finished.failed, finished.truncated
  chunk.spent = finished.tokens
  write_chunk(0, chunk)
  for _, field in ipairs({ 'completed', 'failed', 'truncated', 'tokens', 'cached' }) do set(job, field, finished[field]) end
  redis.call('HSET', JOB, 'chunks_done', 1, 'started_ms', NOW_MS, 'error', finished.error)
  job.chunks_done = 1
  tally('items:completed', finished.completed)
  tally('items:failed', finished.failed)
  tally('tokens', finished.tokens)
  settle(job)
else
  if joins then join_queue(job_id, items, NOW_MS, lane_ttl_ms) end
  if result_bytes > 0 then
    redis.call('HSET', RESERVED, job_id, result_bytes)
    redis.call('HINCRBY', RESERVED, 'total', result_bytes)
    redis.call('ZADD', RESERVED_UNTIL, expires_ms, job_id)
    redis.call('PEXPIRE', RESERVED, lane_ttl_ms)
    redis.call('PEXPIRE', RESERVED_UNTIL, lane_ttl_ms)
  end
  if deadline_in_ms then
    set(job, 'deadline_ms', NOW_MS + deadline_in_ms)
    redis.call('ZADD', DEADLINES, job.deadline_ms, job_id)
    redis.call('PEXPIRE', DEADLINES, lane_ttl_ms)
  end
  if begin_in_ms then set(job, 'not_before_ms', NOW_MS + begin_in_ms) end
  enter_ready(job)
end
announce(job)
return { 'CREATED', job_id }
