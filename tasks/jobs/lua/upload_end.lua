#!lua flags=allow-oom
-- Forget an upload, if it is still the caller's.
-- Answers 1, or 0 when it is gone or somebody else's
if redis.call('HGET', UPLOAD, 'owner') ~= owner then return 0 end
return redis.call('UNLINK', UPLOAD)
