#!lua flags=allow-oom
-- Answer whether so many new bytes would be admitted now.
-- KEYS 1 reserved bytes, 2 reservations by expiry
-- ARGV 1 limit of the store where the server has none (bytes), 2 size of the whole in bytes, 3 bytes still to come
-- Answers OK, FULL or TOO_LARGE
-- include: _room
return refusal(KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])) or 'OK'
