#!lua flags=allow-oom
-- A job that was not to begin before a time gets its turn, if that has come. Repeatable.
-- Answers OK or GONE
-- include: _job
redis.call('ZREM', LATER, job_id)
local job = read_job()
if not job then return 'GONE' end
enter_ready(job)
return 'OK'
