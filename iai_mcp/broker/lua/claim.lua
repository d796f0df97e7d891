#!lua flags=allow-oom
-- Gives what is in flight, else moves items from the head of the pending list into flight.
--
-- KEYS  [1] lease  [2] pending list  [3] in-flight list  [4] state hash
-- ARGV  [1] the lease's value  [2] its time to live in ms  [3] most entries  [4] most bytes
--       [5] linger in ms  [6] now, Unix ms
--
-- Returns {-1} where the lease has passed on; {ms} where the oldest item should wait that long for
-- company; else {0, item, ...}. An item starts with "PUSHED_MS:ENTRIES:".
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {-1}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('LLEN', KEYS[3]) > 0 then
  local flight = redis.call('LRANGE', KEYS[3], 0, -1)
  table.insert(flight, 1, 0)
  return flight
end
local head = redis.call('LINDEX', KEYS[2], 0)
if not head then
  return {0}
end
local most = tonumber(ARGV[3])
local counts = redis.call('HMGET', KEYS[4], 'pushed', 'drained')
if (counts[1] or 0) - (counts[2] or 0) < most then
  local pushed = tonumber(string.match(string.sub(head, 1, 24), '^(%d+):') or '0')
  local left = pushed + tonumber(ARGV[5]) - tonumber(ARGV[6])
  if left > 0 then
    return {math.ceil(math.min(left, tonumber(ARGV[5])))}
  end
end
local reply, entries, bytes = {0}, 0, 0
while head do
  local count = tonumber(string.match(string.sub(head, 1, 40), '^%d+:(%d+):') or '1')
  if #reply > 1 and (entries + count > most or bytes + #head > tonumber(ARGV[4])) then
    break
  end
  redis.call('LMOVE', KEYS[2], KEYS[3], 'LEFT', 'RIGHT')
  reply[#reply + 1] = head
  entries, bytes = entries + count, bytes + #head
  head = redis.call('LINDEX', KEYS[2], 0)
end
return reply
