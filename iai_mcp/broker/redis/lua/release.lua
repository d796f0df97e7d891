#!lua flags=allow-oom
-- Gives a lane back.
--
-- KEYS  [1] lease  [2] pending list
-- ARGV  [1] the lease's value  [2] '1': only where the lane is empty
--
-- Returns 0 where the lane has work and the lease was kept, else 1.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 1
end
if ARGV[2] == '1' and redis.call('LLEN', KEYS[2]) > 0 then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
