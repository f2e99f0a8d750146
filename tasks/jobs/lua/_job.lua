-- Shared piece: the steps that several transitions of a job have in common. Their keys are those of
-- `tasks.jobs.transitions.JobKeys`.
local TIME = redis.call('TIME')
local NOW_MS = TIME[1] * 1000 + math.floor(TIME[2] / 1000)

local FIELDS = { 'state', 'ending', 'claimed', 'chunks', 'chunks_done', 'total', 'completed', 'failed', 'deadline_ms',
  'expires_ms', 'started_ms', 'vtime', 'weight', 'share', 'turn_ms', 'fence', 'result_bytes', 'input_bytes', 'not_before_ms', 'retried', 'misfit' }
local ENDED = { succeeded = true, failed = true, cancelled = true, expired = true }

-- The fields that transitions decide by; nil when the job is gone.
local function read_job()
  local values = redis.call('HMGET', JOB, unpack(FIELDS))
  if not values[1] then return nil end
  local job = {}
  for i, name in ipairs(FIELDS) do
    if values[i] then job[name] = tonumber(values[i]) or values[i] end
  end
  return job
end

local function add(job, field, amount)
  job[field] = redis.call('HINCRBY', JOB, field, amount)
end

local function set(job, field, value)
  job[field] = value
  redis.call('HSET', JOB, field, value)
end

local function read_chunk(number)
  local line = redis.call('HGET', CHUNKS, number)
  if not line then return nil end
  local chunk = cjson.decode(line)
  chunk.state = chunk.state or 'pending'
  return chunk
end

local function write_chunk(number, chunk)
  redis.call('HSET', CHUNKS, number, cjson.encode(chunk))
end

-- Let readers know that something changed; the entry's id is the version, so a reader waits for "anything above mine".
local function announce(job)
  local version = redis.call('HINCRBY', JOB, 'version', 1)
  redis.call('XADD', EVENTS, 'MAXLEN', 1, version .. '-0', 'state', job.state)
  redis.call('PEXPIREAT', EVENTS, job.expires_ms)
end

-- Write into the job's event log, which keeps the newest lines; see `tasks.jobs.job_log`.
local function note(job, event, detail)
  local line = detail or {}
  line.at_ms, line.event = NOW_MS, event
  if actor ~= '' then line.by = actor end
  if request_id ~= '' then line.request_id = request_id end
  if traceparent ~= '' then line.traceparent = traceparent end
  redis.call('RPUSH', LOG, cjson.encode(line))
  redis.call('LTRIM', LOG, -200, -1)
  redis.call('PEXPIREAT', LOG, job.expires_ms)
  line.job, line.tenant, line.model = job_id, tenant, redis.call('HGET', JOB, 'model') or nil
  redis.call('RPUSH', LINES, cjson.encode(line))
  redis.call('LTRIM', LINES, -10000, -1)
  redis.call('PEXPIRE', LINES, lane_ttl_ms)
end

local function entry(number)
  return job_id .. ':' .. number
end

local function hold(number, until_ms)
  redis.call('ZADD', INFLIGHT, until_ms, entry(number))
  redis.call('PEXPIRE', INFLIGHT, lane_ttl_ms)
end

local function let_go(number)
  redis.call('ZREM', INFLIGHT, entry(number))
end

-- Start-time fair queueing (Goyal 1996) in two levels: READY holds tenants by the service that they were given, in tokens
-- per weight, and TURNS this tenant's jobs by what they will have been given with their next chunk, so that a small job
-- goes before the chunks of large ones; the least goes next. SHARES remembers the service of tenants, and a clock for
-- each level.
local SERVED, TENANT_CLOCK = 'served:' .. tenant, 'clock:' .. tenant

local function read_share(name)
  return tonumber(redis.call('HGET', SHARES, name) or 0)
end

local function write_share(name, value)
  redis.call('HSET', SHARES, name, string.format('%.6f', value))
end

-- Let workers look again whose places are all taken and that wait for a small chunk (`tasks.bulk.turns_watch`): the chunk
-- whose turn it is may be another one now. READY names the channel, too.
local function announce_turn()
  redis.call('PUBLISH', READY, '')
end

local function next_turn()
  local first = redis.call('ZRANGE', READY, 0, 0)[1]
  if first ~= tenant then return first end
  return first .. ':' .. (redis.call('ZRANGE', TURNS, 0, 0)[1] or '')
end

-- Call a function that changes the order, and announce it if another job is the next one then.
local function reorder(change, job, tokens, age)
  local before = next_turn()
  change(job, tokens, age)
  local after = next_turn()
  if after and after ~= before then announce_turn() end
end

local function rank(job, flag)
  local number = redis.call('LINDEX', PENDING, 0)
  local tokens = number and read_chunk(number).tokens or 0
  redis.call('ZADD', TURNS, flag, job.vtime + tokens / job.weight, job_id)
end

-- Where a tenant starts that was idle: at the clock, but before all that wait. Tenants are few and pay for what they get,
-- so that cannot hold others back for long.
local function idle_start()
  local head = redis.call('ZRANGE', READY, 0, 0, 'WITHSCORES')
  local clock = read_share('clock')
  return head[2] and math.min(clock, head[2] - 0.001) or clock
end

-- A negative time is that of a job which goes first, see `first.lua`. Its tenant gets as much ahead as the job needs.
local function go_first(job)
  local head = redis.call('ZRANGE', READY, 0, 0, 'WITHSCORES')
  local tokens = tonumber(redis.call('HGET', JOB, 'estimated_tokens') or 0)
  local before = tonumber(head[2] or read_share('clock')) - tokens / (job.share or 4) - 1
  write_share(SERVED, math.min(read_share(SERVED), before))
  redis.call('ZADD', READY, 'XX', read_share(SERVED), tenant)
end

local function join_ready(job)
  if not redis.call('ZSCORE', READY, tenant) then
    write_share(SERVED, math.max(read_share(SERVED), idle_start()))
    if redis.call('EXISTS', READY) == 0 then write_share('moved', NOW_MS) end
    redis.call('ZADD', READY, read_share(SERVED), tenant)
  end
  if job.vtime < 0 then
    go_first(job)
  else
    set(job, 'vtime', math.max(job.vtime, read_share(TENANT_CLOCK)))
  end
  set(job, 'turn_ms', NOW_MS)
  rank(job, 'NX')
  for _, key in ipairs({ READY, TURNS, SHARES }) do redis.call('PEXPIRE', key, lane_ttl_ms) end
end

-- Enter the fair queue. A newcomer, or one that was away, starts at the clock: waiting earns no credit.
local function enter_ready(job)
  if job.misfit or (job.state ~= 'queued' and job.state ~= 'running') then return end
  if redis.call('LLEN', PENDING) == 0 or redis.call('ZSCORE', TURNS, job_id) then return end
  if (job.not_before_ms or 0) > NOW_MS then
    redis.call('ZADD', LATER, job.not_before_ms, job_id)
    redis.call('PEXPIRE', LATER, lane_ttl_ms)
    return
  end
  reorder(join_ready, job)
end

local function leave_turns()
  redis.call('ZREM', TURNS, job_id)
  if redis.call('ZCARD', TURNS) == 0 then redis.call('ZREM', READY, tenant) end
end

local function leave_ready()
  reorder(leave_turns)
end

local function add_service(job, tokens, age)
  write_share(SERVED, read_share(SERVED) + tokens / (job.share or 4))
  redis.call('ZADD', READY, 'XX', read_share(SERVED), tenant)
  set(job, 'vtime', job.vtime + tokens / (job.weight * (age or 1)))
  rank(job, 'XX')
end

-- Charge tokens of service to the job and its tenant, or give back what was charged for nothing.
local function charge(job, tokens, age)
  reorder(add_service, job, tokens, age)
end

-- Whether a worker's model is the one that the job began with. As long as nothing was computed, the job takes any.
local function fits(job, fingerprint)
  if fingerprint == '' then return true end
  local first = redis.call('HGET', JOB, 'fingerprint') or ''
  if first == fingerprint then return true end
  if first ~= '' and (job.claimed > 0 or job.chunks_done > 0 or job.completed > 0) then return false end
  set(job, 'fingerprint', fingerprint)
  return true
end

-- The job has no turn before a worker with its model comes: it must not fill the window with tickets that none can use.
local function wait_for_model(job)
  leave_ready()
  redis.call('ZADD', MISFITS, NOW_MS, job_id)
  redis.call('PEXPIRE', MISFITS, lane_ttl_ms)
  set(job, 'misfit', 1)
  note(job, 'waits_for_model')
  announce(job)
end

-- A chunk goes back to the head of the queue, so that it runs again before new ones.
local function put_back(job, number, chunk)
  chunk.state, chunk.nonce, chunk.worker, chunk.marked, chunk.progress, chunk.delay = 'pending', nil, nil, nil, nil, nil
  write_chunk(number, chunk)
  let_go(number)
  redis.call('LPUSH', PENDING, number)
  redis.call('PEXPIREAT', PENDING, job.expires_ms)
  if redis.call('ZSCORE', TURNS, job_id) then announce_turn() else enter_ready(job) end
end

-- A chunk of a job that is being cancelled. One that was only to be repeated for its failed items is as it was before.
local function drop(job, number, chunk)
  if chunk.redo then
    add(job, 'failed', chunk.redo)
    add(job, 'chunks_done', 1)
    chunk.state, chunk.failed, chunk.redo = 'done', chunk.redo, nil
  else
    chunk.state = 'dropped'
  end
  chunk.nonce, chunk.worker, chunk.marked, chunk.progress, chunk.delay = nil, nil, nil, nil, nil
  write_chunk(number, chunk)
  let_go(number)
end

-- The job keeps so many bytes in Redis more, or less; see `_room.lua`. One of an earlier version was never counted.
local function keep(amount)
  local held = tonumber(redis.call('HGET', HELD, job_id))
  if not held then return end
  amount = math.max(math.floor(amount), 0 - held)
  redis.call('HINCRBY', HELD, job_id, amount)
  redis.call('HINCRBY', HELD, 'total', amount)
end

local function unreserve(amount)
  local held = tonumber(redis.call('HGET', RESERVED, job_id) or 0)
  if held == 0 then return end
  amount = math.min(math.ceil(amount), held)
  redis.call('HINCRBY', RESERVED, 'total', 0 - amount)
  if amount < held then
    redis.call('HINCRBY', RESERVED, job_id, 0 - amount)
  else
    redis.call('HDEL', RESERVED, job_id)
    redis.call('ZREM', RESERVED_UNTIL, job_id)
  end
  keep(0 - amount)
end

-- Note in the same step that a webhook has to be sent for the end, so that no death of a process can lose it.
local function note_end(state)
  if redis.call('HEXISTS', JOB, 'webhook') == 0 then return end
  local number = redis.call('HINCRBY', JOB, 'ends', 1)
  local delivery = { number = number, event = state, at_ms = NOW_MS, attempts = 0, status = 'pending', next_ms = NOW_MS }
  redis.call('HSET', JOB, 'delivery', cjson.encode(delivery))
  redis.call('ZADD', WEBHOOKS, NOW_MS, job_id)
  redis.call('ZADD', WEBHOOK_TENANTS, 'LT', NOW_MS, tenant)
  for _, key in ipairs({ WEBHOOKS, WEBHOOK_TENANTS }) do redis.call('PEXPIRE', key, lane_ttl_ms) end
end

-- Count for the operator. In the step that makes it true, so that neither a repeated call nor a dead process counts wrong.
local function tally(name, amount)
  redis.call('HINCRBY', TOTALS, name, amount)
  redis.call('PEXPIRE', TOTALS, lane_ttl_ms)
end

local function end_job(job, state)
  set(job, 'state', state)
  note(job, state)
  tally('jobs:' .. state, 1)
  redis.call('HSET', JOB, 'ended_ms', NOW_MS)
  redis.call('DEL', PENDING)
  leave_ready()
  redis.call('ZREM', DEADLINES, job_id)
  redis.call('ZREM', LATER, job_id)
  redis.call('ZREM', MISFITS, job_id)
  redis.call('HDEL', QUEUED, job_id)
  unreserve(math.huge)
  note_end(state)
end

-- Count items of a limited tenant out of its queue: each unfinished job has a line of items that wait and the time of
-- its creation (ms).
local function leave_queue(items)
  local line = redis.call('HGET', QUEUED, job_id)
  if not line then return end
  local waiting, created_ms = line:match('^(%d+) (%d+)$')
  redis.call('HSET', QUEUED, job_id, string.format('%.0f %s', math.max(0, waiting - items), created_ms))
end

-- End the job if nothing more can happen to it; call after every step that may have been its last.
local function settle(job)
  if job.state == 'cancelling' then
    if job.claimed == 0 then end_job(job, job.ending) end
  elseif job.chunks_done == job.chunks then
    end_job(job, job.completed > 0 and 'succeeded' or 'failed')
  end
end

-- Stop a job that has not ended: what waits is dropped at once, what is claimed stops at its next heartbeat.
local function begin_ending(job, ending)
  set(job, 'state', 'cancelling')
  set(job, 'ending', ending)
  note(job, ending == 'expired' and 'deadline_passed' or 'cancel_asked')
  leave_ready()
  for _, member in ipairs(redis.call('ZRANGE', INFLIGHT, 0, -1)) do
    local owner, number = member:match('^(.*):(%d+)$')
    local chunk = owner == job_id and read_chunk(number)
    if chunk and chunk.state == 'ticket' then drop(job, number, chunk) end
  end
  -- Lines of pending chunks are left alone: that they are dropped follows from the job's state. Only repeats are undone.
  if job.retried then
    for _, number in ipairs(redis.call('LRANGE', PENDING, 0, -1)) do drop(job, number, read_chunk(number)) end
  end
  redis.call('DEL', PENDING)
  unreserve(math.huge)
  settle(job)
  announce(job)
end

-- Whether the job's deadline has passed; if so, its end has begun.
local function overdue(job)
  if ENDED[job.state] or job.state == 'cancelling' then return false end
  if not job.deadline_ms or job.deadline_ms > NOW_MS then return false end
  begin_ending(job, 'expired')
  return true
end

-- A claim died. An item that was alone on the device in two claims that died, and that never came back alive in between,
-- is the cause; one that a worker finished was exonerated by `mark`. So random kills do not convict the innocent.
local function count_death(job, number, chunk)
  note(job, 'worker_lost', { chunk = tonumber(number), worker = chunk.worker, attempt = chunk.attempts })
  local marked = chunk.marked
  if not marked then return end
  local deaths = chunk.deaths or {}
  for _, position in ipairs(marked) do
    local key = tostring(position)
    deaths[key] = (deaths[key] or 0) + 1
    if #marked == 1 and deaths[key] >= 2 then
      deaths[key] = nil
      chunk.poison = chunk.poison or {}
      table.insert(chunk.poison, position)
    end
  end
  chunk.deaths = next(deaths) and deaths or nil
end

-- The claim is over without a result: the chunk goes back, or is dropped if the job is being cancelled.
local function end_claim(job, number, chunk)
  add(job, 'claimed', -1)
  if job.state == 'cancelling' then
    drop(job, number, chunk)
    settle(job)
    announce(job)
  else
    put_back(job, number, chunk)
  end
end
