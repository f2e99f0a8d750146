#!lua flags=allow-oom
-- Forget a file whose bytes are gone.
redis.call('DEL', FILE)
redis.call('ZREM', EXPIRY, member)
return redis.call('ZREM', LISTED, file_id)
