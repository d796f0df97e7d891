-- Appends one parcel to each of several lanes: all of them, or none.
--
-- KEYS  [1] the store's counts; then for each parcel its lane's pending list
-- ARGV  for each parcel: the lane's field of entries pushed, the most that it may come to, item, its number of
--       entries
--
-- Returns {-1} where a lane is full; else for each parcel how many entries its lane has ever been pushed, and
-- how many items are pending there.
--
-- Two calls for each parcel, since they are most of what a push costs: a lane that turns out to be full is put
-- back as it was.
local call, reply = redis.call, {}
for i = 1, #KEYS - 1 do
  local field, pushed = ARGV[4 * i - 3], call('HINCRBY', KEYS[1], ARGV[4 * i - 3], ARGV[4 * i])
  if pushed > tonumber(ARGV[4 * i - 2]) then
    call('HINCRBY', KEYS[1], field, -ARGV[4 * i])
    for j = i - 1, 1, -1 do
      call('RPOP', KEYS[j + 1])
      call('HINCRBY', KEYS[1], ARGV[4 * j - 3], -ARGV[4 * j])
    end
    return {-1}
  end
  reply[2 * i - 1], reply[2 * i] = pushed, call('RPUSH', KEYS[i + 1], ARGV[4 * i - 1])
end
return reply
