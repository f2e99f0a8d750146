#!lua flags=allow-oom
-- Note which items go to the device next; those noted before came back alive. Renews the lease.
-- Answers GO or STOP
-- include: _job
local job = read_job()
local chunk = job and read_chunk(number)
if not chunk or chunk.state ~= 'claimed' or chunk.fence ~= fence then return 'STOP' end
overdue(job)
if job.state ~= 'running' then return 'STOP' end

local positions = cjson.decode(noted)
local repeated = chunk.marked and cjson.encode(chunk.marked) == cjson.encode(positions)
if chunk.deaths and chunk.marked and not repeated then
  for _, position in ipairs(chunk.marked) do chunk.deaths[tostring(position)] = nil end
  if not next(chunk.deaths) then chunk.deaths = nil end
end
chunk.marked = #positions > 0 and positions or nil
write_chunk(number, chunk)
hold(number, NOW_MS + lease_ms)
return 'GO'
