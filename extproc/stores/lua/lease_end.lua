-- Ends a lease, if it is still the caller's: says what became of it, or leaves it to whoever wants it.
--
-- Knows: the lease. Must not know: entries.
--
-- KEYS  the lease
-- ARGV  the call that holds it, what became of it or "", how long in ms to say so
-- Returns 1, or 0 where it had ended already.

if redis.call("GET", KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == "" then
  redis.call("DEL", KEYS[1])
else
  redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
end
return 1
