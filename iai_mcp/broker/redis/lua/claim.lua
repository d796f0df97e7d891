#!lua flags=allow-oom
-- Claims the first items of a lane: they are in flight from now on, until they are acknowledged.
--
-- KEYS  [1] lease  [2] the store's counts
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] how many items  [4] how many entries are in them
--       [5] and [6] the lane's fields of items claimed and entries claimed
--
-- Returns 1, or -1 where the lease has passed on and nothing was claimed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[5], ARGV[3], ARGV[6], ARGV[4])
return 1
