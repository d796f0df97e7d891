#!lua flags=no-writes,allow-oom
-- Tells how far pushes and drains have come, and how long the lists are, in one round trip of a producer.
--
-- KEYS  [1] how many entries were pushed  [2] the store's counts; then each lane's pending list
-- ARGV  for each lane its field of entries pushed; then for each lane its field of entries drained
--
-- Returns for each lane how many were pushed, how many were drained ('' for a missing one), and how long its list is
-- (-1 for a key that is no list).
local call, lanes, found = redis.pcall, #KEYS - 2, {}
for i = 1, 2 * lanes do
  local count = call('HGET', KEYS[i > lanes and 2 or 1], ARGV[i])
  found[i] = type(count) == 'string' and count or ''
end
for i = 1, lanes do
  local length = call('LLEN', KEYS[i + 2])
  found[2 * lanes + i] = type(length) == 'number' and length or -1
end
return found
