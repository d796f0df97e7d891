-- Appends one parcel to each of several lanes: all of them, or none.
--
-- KEYS  for each parcel: the lane's pending list, its state hash, its lease
-- ARGV  [1] ceiling: most entries that a lane may hold; then for each parcel: item, its number of entries
--
-- Returns {-1} where a lane is full; else for each parcel: how many entries its lane has ever been pushed,
-- and 1 where the lane was idle (nothing pending, nobody draining), so that a doorbell is due.
--
-- Three calls for each parcel, since they are most of what a push costs: a lane that turns out to be full is
-- put back as it was.
local call, ceiling, reply = redis.call, tonumber(ARGV[1]), {}
for i = 1, #KEYS / 3 do
  local pending, state, count = KEYS[3 * i - 2], KEYS[3 * i - 1], tonumber(ARGV[2 * i + 1])
  local length = call('RPUSH', pending, ARGV[2 * i])
  local pushed = call('HINCRBY', state, 'pushed', count)
  local held = pushed - (call('HGET', state, 'drained') or 0)
  if held > ceiling and held > count then
    for j = i, 1, -1 do
      call('RPOP', KEYS[3 * j - 2])
      call('HINCRBY', KEYS[3 * j - 1], 'pushed', -ARGV[2 * j + 1])
    end
    return {-1}
  end
  reply[2 * i - 1] = pushed
  reply[2 * i] = (length == 1 and call('EXISTS', KEYS[3 * i]) == 0) and 1 or 0
end
return reply
