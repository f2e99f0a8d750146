#!lua flags=allow-oom
-- Forget an upload, if it is still the caller's.
-- KEYS 1 upload record
-- ARGV 1 name of the writer
-- Answers 1, or 0 when it is gone or somebody else's
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
