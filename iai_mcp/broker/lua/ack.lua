#!lua flags=allow-oom
-- Drops the first items in flight, whose entries are durable in the store.
--
-- KEYS  [1] lease  [2] in-flight list  [3] state hash
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] how many items
--
-- Returns 1, or -1 where the lease has passed on and nothing was dropped.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local entries, items = 0, 0
for _ = 1, tonumber(ARGV[3]) do
  local item = redis.call('LPOP', KEYS[2])
  if item then
    entries = entries + tonumber(string.match(string.sub(item, 1, 40), '^%d+:(%d+):') or '1')
    items = items + 1
  end
end
local left = redis.call('HINCRBY', KEYS[3], 'entries', -entries)
if left < 0 then
  redis.call('HSET', KEYS[3], 'entries', 0)
end
redis.call('HINCRBY', KEYS[3], 'settled', items)
redis.call('HINCRBY', KEYS[3], 'drained', entries)
return 1
