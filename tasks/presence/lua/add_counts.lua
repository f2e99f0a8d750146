#!lua flags=allow-oom
-- Add what a process has counted, once for each number: a reply that was lost makes the process send the same again.
-- Names that begin with `usage_` are added to the day's usage as well.
-- Answers whether it was added
if tonumber(redis.call('GET', FLUSHED) or '0') >= number then return 0 end
redis.call('SET', FLUSHED, number, 'PX', keep_ms)
local used = false
for i = 1, #counts, 2 do
  redis.call('HINCRBYFLOAT', TOTALS, counts[i], counts[i + 1])
  if string.sub(counts[i], 1, 6) == 'usage_' then
    redis.call('HINCRBYFLOAT', DAILY, counts[i], counts[i + 1])
    used = true
  end
end
redis.call('PEXPIRE', TOTALS, keep_ms)
if used then redis.call('PEXPIRE', DAILY, keep_usage_ms) end
return 1
