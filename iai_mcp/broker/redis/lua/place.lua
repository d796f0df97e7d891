-- Notes the folder that the lanes belong to, where nobody has noted another one meanwhile.
--
-- KEYS  [1] place
-- ARGV  [1] how long the list was when it was read  [2] the note
--
-- Returns 1, or 0 where the list has grown.
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[1]) then
  return 0
end
redis.call('RPUSH', KEYS[1], ARGV[2])
return 1
