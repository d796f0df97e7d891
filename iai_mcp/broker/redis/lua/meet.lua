#!lua flags=allow-oom
-- Names the present epoch of a store's data here, and begins a new one where this server is not the one that it names.
--
-- KEYS  [1] epoch
-- ARGV  [1] the server's identity, '' where it is unknown  [2] the name of a new epoch, which begins with it
--
-- Returns the epoch's name.
local now = redis.call('GET', KEYS[1])
if now and string.sub(now, 1, #ARGV[1]) == ARGV[1] then
  return now
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
