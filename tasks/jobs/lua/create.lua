#!lua
-- Create a job, or keep one that was answered at once. Its inputs are stored already.
-- KEYS 1-11 see _job, 12 the tenant's jobs, 13 idempotency key, 14 unfinished uploads, 15 result of chunk 0
-- ARGV 1-2 see _job, 3 fields of the record (JSON, flat), 4 lines of the chunk table (JSON list), 5 payload hash or '',
--      6 id of a vanished job that the idempotency key may still name or '', 7 how long the job lives (ms),
--      8 limit of the store where the server has none (bytes), 9 input bytes, 10 result bytes, 11 deadline from now (ms)
--      or '', 12 outcome of a finished job (JSON) or '', 13 its result frame
-- Answers {CREATED | EXISTS | MISMATCH | FULL | TOO_LARGE, job id}
-- include: _room
-- include: _job
local TENANT_JOBS, IDEMPOTENCY, UPLOADS, RESULT = KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local payload_hash, ttl_ms = ARGV[5], tonumber(ARGV[7])

if redis.call('EXISTS', JOB) == 1 then return { 'CREATED', JOB_ID } end
if payload_hash ~= '' then
  local known = redis.call('GET', IDEMPOTENCY)
  if known then
    local first = cjson.decode(known)
    if first.job ~= ARGV[6] then return { first.hash == payload_hash and 'EXISTS' or 'MISMATCH', first.job } end
  end
end

local finished = ARGV[12] ~= '' and cjson.decode(ARGV[12])
local input_bytes, result_bytes = tonumber(ARGV[9]), tonumber(ARGV[10])
local new_bytes = finished and #ARGV[13] or result_bytes
local refused = refusal(RESERVED, RESERVED_UNTIL, tonumber(ARGV[8]), input_bytes + result_bytes, new_bytes)
if refused then return { refused, JOB_ID } end

local expires_ms = NOW_MS + ttl_ms
local chunks = cjson.decode(ARGV[4])
redis.call('HSET', JOB, unpack(cjson.decode(ARGV[3])))
redis.call('HSET', JOB, 'state', 'queued', 'created_ms', NOW_MS, 'expires_ms', expires_ms, 'chunks', #chunks,
  'chunks_done', 0, 'completed', 0, 'failed', 0, 'truncated', 0, 'tokens', 0, 'done_estimate', 0, 'claimed', 0,
  'vtime', 0, 'fence', 0, 'version', 0, 'result_bytes', result_bytes)
redis.call('PEXPIREAT', JOB, expires_ms)
redis.call('ZADD', TENANT_JOBS, NOW_MS, JOB_ID)
redis.call('PEXPIRE', TENANT_JOBS, LANE_TTL_MS)
redis.call('ZREM', UPLOADS, JOB_ID)
if payload_hash ~= '' then
  redis.call('SET', IDEMPOTENCY, cjson.encode({ job = JOB_ID, hash = payload_hash }), 'PXAT', expires_ms)
end

-- In slices: one call per chunk would hold up the server for long when a job has tens of thousands.
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
if finished then
  redis.call('SET', RESULT, ARGV[13], 'PXAT', expires_ms)
  local chunk = read_chunk(0)
  chunk.state, chunk.pointer, chunk.size = 'done', 'redis', #ARGV[13]
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
  if result_bytes > 0 then
    redis.call('HSET', RESERVED, JOB_ID, result_bytes)
    redis.call('HINCRBY', RESERVED, 'total', result_bytes)
    redis.call('ZADD', RESERVED_UNTIL, expires_ms, JOB_ID)
    redis.call('PEXPIRE', RESERVED, LANE_TTL_MS)
    redis.call('PEXPIRE', RESERVED_UNTIL, LANE_TTL_MS)
  end
  if ARGV[11] ~= '' then
    set(job, 'deadline_ms', NOW_MS + tonumber(ARGV[11]))
    redis.call('ZADD', DEADLINES, job.deadline_ms, JOB_ID)
    redis.call('PEXPIRE', DEADLINES, LANE_TTL_MS)
  end
  enter_ready(job)
end
announce(job)
return { 'CREATED', JOB_ID }
