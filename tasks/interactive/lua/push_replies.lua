#!lua flags=allow-oom
-- Send replies to one web process; they expire when it is gone and does not fetch them.
for _, element in ipairs(elements) do
  redis.call('RPUSH', REPLIES, element)
end
return redis.call('PEXPIRE', REPLIES, keep_ms)
