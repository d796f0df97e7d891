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
local entries = 0
for _, item in ipairs(redis.call('LPOP', KEYS[2], ARGV[3]) or {}) do
  entries = entries + tonumber(string.match(string.sub(item, 1, 40), '^%d+:(%d+):') or '1')
end
local drained = redis.call('HINCRBY', KEYS[3], 'drained', entries)
if drained > tonumber(redis.call('HGET', KEYS[3], 'pushed') or '0') then -- somebody pushed past the script
  redis.call('HSET', KEYS[3], 'pushed', string.format('%d', drained))
end
return 1
