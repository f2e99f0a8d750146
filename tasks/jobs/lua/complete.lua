#!lua flags=allow-oom
-- Store a chunk's result and count it, once; the last chunk ends the job. The first writer wins: a result is a result even
-- if its lease ran out, and whoever claimed the chunk since is told to stop by its next heartbeat.
-- KEYS 1-11 see _job, 12 result of the chunk, 13 input of the chunk
-- ARGV 1-2 see _job, 3 chunk number, 4 fence, 5 completed, 6 failed, 7 truncated, 8 tokens, 9 pointer, 10 size (bytes),
--      11 result frame, or '' where it lies outside, 12 a sentence about the first failed item or '',
--      13 items whose value was taken over
-- Answers {OK | DUP | GONE, state of the job, head of the ready jobs or ''}
-- include: _job
local number = ARGV[3]
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk then return { 'GONE', '', '' } end
if ENDED[job.state] or chunk.state == 'done' or chunk.state == 'dropped' or tonumber(ARGV[4]) <= (chunk.floor or 0) then
  return { 'DUP', job.state, head_of_ready() }
end
-- A chunk that waits again is dropped with the rest when the job is being cancelled.
if job.state == 'cancelling' and chunk.state ~= 'claimed' then return { 'DUP', job.state, head_of_ready() } end

local completed, failed, truncated, tokens = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if chunk.state == 'claimed' then add(job, 'claimed', -1) end
if chunk.state == 'pending' then
  redis.call('LREM', PENDING, 1, number)
  if redis.call('LLEN', PENDING) == 0 then redis.call('ZREM', READY, JOB_ID) end
end
let_go(number)

if ARGV[9] == 'redis' then redis.call('SET', KEYS[12], ARGV[11], 'PXAT', job.expires_ms) end
-- Texts are kept only while an item of theirs may have to be computed again.
if failed == 0 then redis.call('UNLINK', KEYS[13]) end

local first_time = not chunk.redo
chunk.state, chunk.pointer, chunk.size, chunk.redo = 'done', ARGV[9], tonumber(ARGV[10]), nil
chunk.completed, chunk.failed = (chunk.completed or 0) + completed, failed
chunk.truncated, chunk.spent = (chunk.truncated or 0) + truncated, (chunk.spent or 0) + tokens
chunk.nonce, chunk.worker, chunk.marked, chunk.progress, chunk.deaths, chunk.delay = nil, nil, nil, nil, nil, nil
write_chunk(number, chunk)

add(job, 'completed', completed)
add(job, 'failed', failed)
redis.call('HINCRBY', JOB, 'truncated', truncated)
redis.call('HINCRBY', JOB, 'tokens', tokens)
tally('items:completed', completed)
tally('items:failed', failed)
tally('tokens', tokens)
if tonumber(ARGV[13]) > 0 then redis.call('HINCRBY', JOB, 'cached', ARGV[13]) end
add(job, 'chunks_done', 1)
if first_time then
  redis.call('HINCRBY', JOB, 'done_estimate', chunk.tokens)
  unreserve(job.result_bytes * chunk.items / job.total)
end
if ARGV[12] ~= '' then redis.call('HSETNX', JOB, 'error', ARGV[12]) end

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
return { 'OK', job.state, head_of_ready() }
