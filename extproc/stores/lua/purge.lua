-- Marks what a purge covers with the next number, so that no entry put before it is served again.
--
-- Knows: one hash; id and n are its own fields, every other is a JSON array of tenant and model, null for
-- all. Must not know: entries. An entry carries the id and the n that its process knew when it was put.
--
-- KEYS  the hash
-- ARGV  an id for a hash that is not there, the field, the field of everything, how many fields at most
-- Returns the number.

redis.call("HSETNX", KEYS[1], "id", ARGV[1])
local field = ARGV[2]
if redis.call("HLEN", KEYS[1]) - 2 >= tonumber(ARGV[4]) and redis.call("HEXISTS", KEYS[1], field) == 0 then
  local n, id = redis.call("HGET", KEYS[1], "n"), redis.call("HGET", KEYS[1], "id")
  redis.call("DEL", KEYS[1])
  redis.call("HSET", KEYS[1], "id", id, "n", n or 0)
  field = ARGV[3] -- forgetting more is safe
end
local number = redis.call("HINCRBY", KEYS[1], "n", 1)
redis.call("HSET", KEYS[1], field, number)
return number
