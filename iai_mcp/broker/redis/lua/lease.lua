#!lua flags=allow-oom
-- Takes a lane without a live lease, under a fencing token that is higher than every one before.
--
-- KEYS  [1] lease  [2] state hash  [3] the store's counts
-- ARGV  [1] holder  [2] time to live in ms  [3] floor: the highest token that the lane's table has seen
--       [4] the lane's field of items claimed  [5] the longest step above the floor that leases may have made
--
-- The floor is the truth: who writes has raised it to the own token. The token here is ahead of it by the leases that
-- wrote nothing. One that is no plain number of at most 15 digits, which doubles hold exactly, or further ahead than
-- leases can be, is a stray value: it is put right.
--
-- Returns {-1} where a lease lives; else {token, the holder before ('' where there was none), how many items
-- are in flight, which that holder has left, 1 where the token was a stray value}.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {-1}
end
local function plain(text)
  return text and #text <= 15 and string.find(text, '^%d+$') and tonumber(text)
end
local last = redis.call('HMGET', KEYS[2], 'token', 'holder')
local floor, stray = tonumber(ARGV[3]), 0
local token = plain(last[1] or '0')
if not token or token > floor + tonumber(ARGV[5]) then
  token, stray = floor, 1
end
token = math.max(token, floor) + 1
redis.call('HSET', KEYS[2], 'token', string.format('%d', token), 'holder', ARGV[1])
redis.call('SET', KEYS[1], string.format('%d:%s', token, ARGV[1]), 'PX', ARGV[2])
return {token, last[2] or '', plain(redis.call('HGET', KEYS[3], ARGV[4]) or '0') or 0, stray}
