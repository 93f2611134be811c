-- Write key records if nobody wrote since they were read: compare and set, in one step.
--
-- KEYS: the meta hash, the index, the tenants, then one hash for each record.
-- ARGV: the incarnation and the epoch that were read ('' and '0' where the store was empty), the
--       incarnation an empty store gets, then for each record its id, its tenant and a JSON array
--       of fields and values.
-- Returns 1, or 0 where the store is no longer what was read.
local read = redis.call('HMGET', KEYS[1], 'incarnation', 'epoch')
if (read[1] or '') ~= ARGV[1] or (read[2] or '0') ~= ARGV[2] then
  return 0
end
redis.call('HSETNX', KEYS[1], 'incarnation', ARGV[3])
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
for n = 4, #KEYS do
  local at = 4 + (n - 4) * 3
  redis.call('DEL', KEYS[n])
  redis.call('HSET', KEYS[n], unpack(cjson.decode(ARGV[at + 2])))
  redis.call('ZADD', KEYS[2], epoch, ARGV[at])
  redis.call('SADD', KEYS[3], ARGV[at + 1])
end
return 1
