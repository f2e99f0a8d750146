#!lua flags=allow-oom
-- Claim one end of a tenant for a while; when the process dies, the claim expires and another process gets it. The
-- tenant's next turn comes after those that are due now, or when its next end is.
-- Answers a job id, or nothing when none of the tenant's is due
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local job_id = redis.call('ZRANGEBYSCORE', DUE, '-inf', now_ms, 'LIMIT', 0, 1)[1]
if job_id then redis.call('ZADD', DUE, 'XX', now_ms + hold_ms, job_id) end
local following = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')[2]
if following then
  redis.call('ZADD', TENANTS, 'XX', math.max(now_ms, following), tenant)
else
  redis.call('ZREM', TENANTS, tenant)
end
return job_id
