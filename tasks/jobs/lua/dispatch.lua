#!lua flags=allow-oom
-- Give the job's next chunk a ticket, if the lane's window has room. The caller publishes it afterwards; if that fails,
-- the ticket becomes overdue and is published again.
-- Answers {TICKET | FULL | NEXT, chunk number or '', head of the ready jobs or '', room left, attempts of the chunk}
-- include: _job
local heaviest = 16

local function room()
  local workers = redis.call('ZCOUNT', WORKERS, NOW_MS, '+inf')
  return math.max(window, workers * tickets_per_worker) - redis.call('ZCARD', INFLIGHT)
end

local job = read_job()
if not job or overdue(job) or job.misfit or (job.state ~= 'queued' and job.state ~= 'running') then
  redis.call('ZREM', READY, job_id)
  return { 'NEXT', '', head_of_ready(), room(), 0 }
end
local free = room()
if free <= 0 then return { 'FULL', '', '', 0, 0 } end
local number = redis.call('LPOP', PENDING)
if not number then
  redis.call('ZREM', READY, job_id)
  return { 'NEXT', '', head_of_ready(), free, 0 }
end

local chunk = read_chunk(number)
chunk.state, chunk.delay = 'ticket', timeout_ms
write_chunk(number, chunk)
hold(number, NOW_MS + timeout_ms)

-- Start-time fair queueing (Goyal 1996): the job with the least service per weight goes next. The clock runs on with the
-- work that is handed out, even when only newcomers are served, so that no stream of newcomers can hold others back.
local clock = math.max(tonumber(redis.call('GET', CLOCK) or 0), job.vtime)
clock = clock + chunk.tokens / (heaviest * math.max(1, redis.call('ZCARD', READY)))
redis.call('SET', CLOCK, string.format('%.6f', clock), 'PX', lane_ttl_ms)
set(job, 'vtime', job.vtime + math.max(1, chunk.tokens) / job.weight)
if redis.call('LLEN', PENDING) > 0 then
  redis.call('ZADD', READY, job.vtime, job_id)
else
  redis.call('ZREM', READY, job_id)
end
return { 'TICKET', number, head_of_ready(), free - 1, chunk.attempts or 0 }
