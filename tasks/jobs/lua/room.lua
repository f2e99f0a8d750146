#!lua flags=allow-oom
-- Answer whether so many new bytes would be admitted now.
-- Answers OK, FULL or TOO_LARGE
-- include: _room
return refusal(RESERVED, RESERVED_UNTIL, store_max_bytes, size_bytes, new_bytes) or 'OK'
