#!lua flags=allow-oom
-- Renews a lease whose holder is still writing a batch.
--
-- KEYS  [1] lease
-- ARGV  [1] the lease's value  [2] its time to live in ms
--
-- Returns 1, or -1 where the lease has passed on.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
