-- Appends parcels to their lanes: all of them, or none.
--
-- KEYS  [1] how many entries were pushed  [2] epoch; then for each parcel its lane's pending list
-- ARGV  [1] the epoch that the producer knows; then for each parcel: the lane's field of entries pushed, the most
--       that it may come to, item, its number of entries
--
-- Returns {-1} where a lane is full, {-2} where the epoch is another one; else for each parcel how many entries its
-- lane has ever been pushed, and how many items are pending there.
--
-- Two calls for each parcel, since they are most of what a push costs. All are counted before the first is appended:
-- where one turns out to be full, or its count is no number, those before it are counted back, and no item was there.
local call, reply = redis.call, {}
if call('GET', KEYS[2]) ~= ARGV[1] then
  return {-2}
end
local counted, full = 0, false
for i = 1, #KEYS - 2 do
  local pushed = redis.pcall('HINCRBY', KEYS[1], ARGV[4 * i - 2], ARGV[4 * i + 1])
  full = type(pushed) ~= 'number' and pushed or pushed > tonumber(ARGV[4 * i - 1]) and {-1}
  counted = type(pushed) == 'number' and i or counted
  if full then
    break
  end
  reply[2 * i - 1] = pushed
end
if full then
  for i = 1, counted do
    call('HINCRBY', KEYS[1], ARGV[4 * i - 2], -ARGV[4 * i + 1])
  end
  return full
end
for i = 1, #KEYS - 2 do
  reply[2 * i] = call('RPUSH', KEYS[i + 2], ARGV[4 * i])
end
return reply
