-- Appends one parcel to each of several lanes: all of them, or none.
--
-- KEYS  for each parcel: the lane's pending list, its state hash, its lease
-- ARGV  [1] ceiling: most entries that a lane may hold; then for each parcel: item, its number of entries
--
-- Returns {-1} where a lane is full; else for each parcel: how many items its lane has ever been pushed,
-- and 1 where the lane was idle (nothing pending, nobody draining), so that a doorbell is due.
local ceiling = tonumber(ARGV[1])
local parcels = #KEYS / 3
for i = 1, parcels do
  local held = tonumber(redis.call('HGET', KEYS[3 * i - 1], 'entries') or '0')
  if held + tonumber(ARGV[2 * i + 1]) > ceiling and held > 0 then
    return {-1}
  end
end
local reply = {}
for i = 1, parcels do
  local pending, state, lease = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local length = redis.call('RPUSH', pending, ARGV[2 * i])
  redis.call('HINCRBY', state, 'entries', ARGV[2 * i + 1])
  reply[2 * i - 1] = redis.call('HINCRBY', state, 'pushed', 1)
  reply[2 * i] = (length == 1 and redis.call('EXISTS', lease) == 0) and 1 or 0
end
return reply
