#!lua flags=allow-oom
-- Takes a lane that nobody leases, under a fencing token that is higher than every one before.
--
-- KEYS  [1] lease  [2] state hash
-- ARGV  [1] holder  [2] time to live in ms  [3] floor: the highest token that the lane's table has seen
--
-- Returns the token, or -1 where a lease lives.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return -1
end
local last = tonumber(redis.call('HGET', KEYS[2], 'token') or '0')
local token = math.max(last, tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[2], 'token', string.format('%d', token))
redis.call('SET', KEYS[1], string.format('%d:%s', token, ARGV[1]), 'PX', ARGV[2])
return token
