#!lua flags=allow-oom
-- Takes a lane without a live lease, under a fencing token that is higher than every one before.
--
-- KEYS  [1] lease  [2] state hash  [3] the store's counts
-- ARGV  [1] holder  [2] time to live in ms  [3] floor: the highest token that the lane's table has seen
--       [4] the lane's field of items claimed
--
-- Returns {-1} where a lease lives; else {token, the holder before ('' where there was none), how many items
-- are in flight, which that holder has left}.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {-1}
end
local last = redis.call('HMGET', KEYS[2], 'token', 'holder')
local token = math.max(tonumber(last[1] or '0'), tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[2], 'token', string.format('%d', token), 'holder', ARGV[1])
redis.call('SET', KEYS[1], string.format('%d:%s', token, ARGV[1]), 'PX', ARGV[2])
return {token, last[2] or '', tonumber(redis.call('HGET', KEYS[3], ARGV[4]) or '0')}
