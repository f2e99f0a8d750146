#!lua flags=allow-oom
-- Answer whether so many new bytes would be admitted now, and count those of an upload for its tenant.
-- Answers {OK | FULL | TOO_LARGE | TOO_MUCH | OVER, bytes that the tenant's other jobs keep}
-- include: _room
local refused, kept = refusal(job_id, size_bytes, new_bytes)
if refused then return { refused, kept } end
if job_id ~= '' and size_bytes > 0 then hold_bytes(job_id, size_bytes, redis.call('TIME')[1] * 1000 + hold_ms) end
return { 'OK', 0 }
