#!lua flags=allow-oom
-- Give a ticket for the job's next chunk to the worker that asks: it claims the chunk at once. If it dies before that,
-- the ticket becomes overdue and the chunk waits again.
-- Answers {TICKET | LARGE | FULL | NEXT, chunk number or ''}
-- include: _job
local heaviest, oldest = 16, 16

local job = read_job()
if not job or overdue(job) or job.misfit or (job.state ~= 'queued' and job.state ~= 'running') then
  leave_ready()
  return { 'NEXT', '' }
end
local workers = redis.call('ZCOUNT', WORKERS, NOW_MS, '+inf')
if redis.call('ZCARD', INFLIGHT) >= math.max(window, workers * tickets_per_worker) then return { 'FULL', '' } end
local number = redis.call('LINDEX', PENDING, 0)
if not number then
  leave_ready()
  return { 'NEXT', '' }
end
local chunk = read_chunk(number)
if most_tokens and chunk.items > 1 and chunk.tokens > most_tokens then return { 'LARGE', '' } end

redis.call('LPOP', PENDING)
chunk.state, chunk.delay = 'ticket', nil
write_chunk(number, chunk)
hold(number, NOW_MS + timeout_ms)

-- The clocks run on with the work that is handed out, even when only newcomers are served, so that no stream of newcomers
-- can hold others back. A job that waits ages: each minute without a turn makes the next ones cheaper.
local function advance(clock, start, rivals)
  write_share(clock, math.max(read_share(clock), start) + chunk.tokens / (heaviest * math.max(1, rivals)))
end
advance('clock', read_share(SERVED), redis.call('ZCARD', READY))
advance(TENANT_CLOCK, job.vtime, redis.call('ZCARD', TURNS))
charge(job, math.max(1, chunk.tokens), math.max(1, math.min(oldest, 1 + (NOW_MS - (job.turn_ms or NOW_MS)) / 60000)))
set(job, 'turn_ms', NOW_MS)
write_share('moved', NOW_MS)
local following = redis.call('LINDEX', PENDING, 0)
if not following then
  leave_ready()
elseif 2 * read_chunk(following).tokens < chunk.tokens then
  announce_turn()
end
return { 'TICKET', number }
