#!lua flags=allow-oom
-- Puts right what no client and no worker has written, from what is true: the lists, and keys of the right type.
--
-- KEYS  [1] how many entries were pushed  [2] the store's counts  [3] epoch  [4] place
--       [5] the list of what was set aside; then for each lane lease, state, pending
-- ARGV  [1] the longest time that a lease may have, in ms  [2] the time to live of a lease, in ms
--       [3] and [4] the beginning and the end of names for what is set aside
--       then for each lane: its fields of entries pushed, entries drained, items claimed, entries claimed; how many
--       entries wait in it ('' where the caller has not counted them), and in how many items it counted them
--
-- A key of another type is renamed, never deleted, but for a lease, which nobody can hold. A lane that may lack
-- entries gets a new epoch, so that their producers push them again.
--
-- Returns for each finding: lane (-1: all of the store), what it concerns, the key where it was set aside or ''. The
-- finding 'recount' asks the caller to count the entries of a lane and call again.
local call, found = redis.call, {}
local function note(lane, what, aside)
  for _, one in ipairs({lane, what, aside or ''}) do
    found[#found + 1] = one
  end
end
local function kind(key)
  local answer = call('TYPE', key)
  return type(answer) == 'table' and answer.ok or answer
end
local function check(lane, what, key, right)
  local is = kind(key)
  if is ~= 'none' and is ~= right then
    local aside = ARGV[3] .. what .. ':' .. (lane < 0 and 'all' or lane) .. ARGV[4]
    call('RENAME', key, aside)
    if kind(KEYS[5]) == 'list' or kind(KEYS[5]) == 'none' then
      call('RPUSH', KEYS[5], aside)
    end
    call('DEL', KEYS[3])
    note(lane, what, aside)
  end
end
local function plain(text)
  return #text <= 15 and string.find(text, '^%d+$') and tonumber(text) or nil
end
local function text(number)
  return string.format('%d', number)
end

check(-1, 'pushed', KEYS[1], 'hash')
check(-1, 'counts', KEYS[2], 'hash')
check(-1, 'epoch', KEYS[3], 'string')
check(-1, 'place', KEYS[4], 'list')

local function mend_lease(lane, lease)
  local is = kind(lease)
  if is ~= 'none' and is ~= 'string' then
    call('DEL', lease)
    note(lane, 'lease')
  elseif is == 'string' then
    local left = call('PTTL', lease)
    if left == -1 or left > tonumber(ARGV[1]) then
      call('PEXPIRE', lease, ARGV[2])
      note(lane, 'lease')
    end
  end
end

local function mend_counts(lane, length, at)
  local pushed = plain(call('HGET', KEYS[1], ARGV[at]) or '0')
  local counts = call('HMGET', KEYS[2], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  local drained, items, entries = plain(counts[1] or '0'), plain(counts[2] or '0'), plain(counts[3] or '0')
  if not items or not entries or items > length or (items == 0 and entries > 0) then
    call('HSET', KEYS[2], ARGV[at + 2], '0', ARGV[at + 3], '0')
    note(lane, 'claimed')
  end
  local base = drained and drained < 1e14 and drained or 0
  if length == 0 and pushed and pushed < 1e14 then
    base = math.max(base, pushed)
  end
  local right = pushed and pushed < 1e14 and drained and drained < 1e14 and pushed >= drained
  if right and (length > 0 or pushed == drained) then
    return
  end
  local waiting = length == 0 and 0 or tonumber(ARGV[at + 4])
  if not waiting then
    return note(lane, 'recount')
  end
  local came = math.max(0, length - tonumber(ARGV[at + 5])) -- since they were counted
  call('HSET', KEYS[1], ARGV[at], text(base + waiting + 64 * came))
  call('HSET', KEYS[2], ARGV[at + 1], text(base))
  call('DEL', KEYS[3])
  note(lane, 'counts')
end

for lane = 0, (#KEYS - 5) / 3 - 1 do
  local lease, state, pending = KEYS[3 * lane + 6], KEYS[3 * lane + 7], KEYS[3 * lane + 8]
  mend_lease(lane, lease)
  check(lane, 'state', state, 'hash')
  check(lane, 'pending', pending, 'list')
  mend_counts(lane, call('LLEN', pending), 6 * lane + 5)
end
return found
