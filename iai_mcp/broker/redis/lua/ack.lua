#!lua flags=allow-oom
-- Drops the first items in flight, whose entries are durable in the store.
--
-- KEYS  [1] lease  [2] pending list  [3] the store's counts  [4] epoch  [5] how many entries were pushed
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] how many items  [4] how many entries are in them
--       [5] to [8] the lane's fields of entries pushed, entries drained, items claimed, entries claimed
--
-- Returns 1, or -1 where the lease has passed on and nothing was dropped.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[2], ARGV[3], -1)
local function plain(text)
  return #text <= 15 and string.find(text, '^%d+$') and tonumber(text)
end
local counts = redis.call('HMGET', KEYS[3], ARGV[6], ARGV[7], ARGV[8])
local function left(at, gone)
  return string.format('%d', math.max(0, (plain(counts[at] or '0') or 0) - tonumber(gone)))
end
redis.call('HSET', KEYS[3], ARGV[7], left(2, ARGV[3]), ARGV[8], left(3, ARGV[4]))
local pushed, drained = plain(redis.call('HGET', KEYS[5], ARGV[5]) or '0'), plain(counts[1] or '0')
if not pushed or not drained or drained > 1e14 then
  return 1 -- stray values: the next sweep mends them
end
local total = drained + tonumber(ARGV[4])
local ever = math.max(pushed, total)
if total > pushed then -- items came that no producer counted: they may stand where others were taken away
  redis.call('DEL', KEYS[4]) -- so producers push again what they are not sure of
end
if redis.call('EXISTS', KEYS[2]) == 0 and total ~= ever then
  total = ever -- nothing waits, though more entries were counted: they are lost, by eviction or by somebody's hand
  redis.call('DEL', KEYS[4]) -- so their producers push them again
end
redis.call('HSET', KEYS[5], ARGV[5], string.format('%d', ever))
redis.call('HSET', KEYS[3], ARGV[6], string.format('%d', total))
return 1
