-- Replaces a reservation by the truth, once; frees its slots.
--
-- Knows: the accounts' hashes and leases. Must not know: prices, tokens, who called.
--
-- KEYS  the reservation; then for each account its hash and its leases
-- ARGV  id; how long in ms to remember that it was given up, where nobody knows whether it was made
--       (else 0); the change by unit, or "" each to give everything back; each account's slots as bits
-- Returns 1 where the reservation was open, 0 where it was settled, had expired or never was.

local SLOTS = { { 1, 2 }, { 2, 1 }, { 2, 2 }, { 3, 2 }, { 3, 3 } } -- unit and window, by slot
local GIVEN_UP = "given up"

local id, remember_ms = ARGV[1], tonumber(ARGV[2])
local held = redis.call("GET", KEYS[1])
local accounts = (#KEYS - 1) / 2
for i = 1, accounts do
  redis.call("ZREM", KEYS[2 * i + 1], id)
end
if not held or held == GIVEN_UP then
  if remember_ms > 0 then
    redis.call("SET", KEYS[1], GIVEN_UP, "PX", remember_ms)
  end
  return 0
end
redis.call("DEL", KEYS[1])

local reserved = {}
for word in string.gmatch(held, "%S+") do
  reserved[#reserved + 1] = word
end
local change = {}
for unit = 1, 3 do
  local given = ARGV[2 + unit]
  change[unit] = given ~= "" and given or (reserved[unit] == "0" and "0" or "-" .. reserved[unit])
end
for i = 1, accounts do
  local key, mask = KEYS[2 * i], tonumber(ARGV[5 + i])
  for slot, what in ipairs(SLOTS) do
    local unit, window = what[1], reserved[3 + what[2]]
    if bit.band(mask, 2 ^ (slot - 1)) ~= 0 and change[unit] ~= "0" then
      -- A window that has passed meanwhile is left alone: its counter is of another one now.
      if redis.call("HGET", key, "w" .. (slot - 1)) == window then
        redis.call("HINCRBY", key, "u" .. (slot - 1), change[unit])
      end
    end
  end
end
return 1
