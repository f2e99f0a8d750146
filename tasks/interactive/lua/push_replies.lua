#!lua flags=allow-oom
-- Hand replies to one web process; they vanish when it is gone and does not fetch them.
-- KEYS[1] list   replies to that process (tasks.keys.replies)
-- ARGV[1] ms to keep them; then the replies
for i = 2, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
