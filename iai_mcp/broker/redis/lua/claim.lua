#!lua flags=allow-oom
-- Claims the first items of a lane: they are in flight from now on, until they are acknowledged.
--
-- KEYS  [1] lease  [2] the store's counts
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] lane  [4] how many items
--       [5] how many entries are in them
--
-- Returns 1, or -1 where the lease has passed on and nothing was claimed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[3] .. ':claimed', ARGV[4], ARGV[3] .. ':claimed_entries', ARGV[5])
return 1
