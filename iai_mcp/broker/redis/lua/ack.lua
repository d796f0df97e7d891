#!lua flags=allow-oom
-- Drops the first items in flight, whose entries are durable in the store.
--
-- KEYS  [1] lease  [2] pending list  [3] the store's counts  [4] epoch
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] how many items  [4] how many entries are in them
--       [5] to [8] the lane's fields of entries pushed, entries drained, items claimed, entries claimed
--
-- Returns 1, or -1 where the lease has passed on and nothing was dropped.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[2], ARGV[3], -1)
local pushed, drained, items, entries = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local counts = redis.call('HMGET', KEYS[3], pushed, drained, items, entries)
local function count(at, change)
  return string.format('%d', math.max(0, tonumber(counts[at] or '0') + change))
end
local total = count(2, tonumber(ARGV[4]))
local ever = string.format('%d', math.max(tonumber(counts[1] or '0'), tonumber(total))) -- some may come past the script
if redis.call('EXISTS', KEYS[2]) == 0 and total ~= ever then
  total = ever -- nothing waits, though more entries were counted: they are lost, by eviction or by somebody's hand
  redis.call('DEL', KEYS[4]) -- so their producers push them again
end
redis.call('HSET', KEYS[3], pushed, ever, drained, total, items, count(3, -ARGV[3]), entries, count(4, -ARGV[4]))
return 1
