#!lua flags=allow-oom
-- Write into a job's event log what somebody saw who is no part of its computing.
-- Answers OK or GONE
-- include: _job
local job = read_job()
if not job then return 'GONE' end
note(job, event, cjson.decode(detail))
return 'OK'
