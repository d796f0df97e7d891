-- Appends parcels to their lanes: all of them, or none.
--
-- KEYS  [1] the store's counts  [2] epoch; then for each parcel its lane's pending list
-- ARGV  [1] the epoch that the producer knows; then for each parcel: the lane's field of entries pushed, the most
--       that it may come to, item, its number of entries
--
-- Returns {-1} where a lane is full, {-2} where the epoch is another one; else for each parcel how many entries its
-- lane has ever been pushed, and how many items are pending there.
--
-- Two calls for each parcel, since they are most of what a push costs: a lane that turns out to be full is put
-- back as it was.
local call, reply = redis.call, {}
if call('GET', KEYS[2]) ~= ARGV[1] then
  return {-2}
end
for i = 1, #KEYS - 2 do
  local field, pushed = ARGV[4 * i - 2], call('HINCRBY', KEYS[1], ARGV[4 * i - 2], ARGV[4 * i + 1])
  if pushed > tonumber(ARGV[4 * i - 1]) then
    call('HINCRBY', KEYS[1], field, -ARGV[4 * i + 1])
    for j = i - 1, 1, -1 do
      call('RPOP', KEYS[j + 2])
      call('HINCRBY', KEYS[1], ARGV[4 * j - 2], -ARGV[4 * j + 1])
    end
    return {-1}
  end
  reply[2 * i - 1], reply[2 * i] = pushed, call('RPUSH', KEYS[i + 2], ARGV[4 * i])
end
return reply
