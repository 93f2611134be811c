-- Decides one call over all its accounts and charges them, or none of them.
--
-- Knows: the accounts' hashes, their leases, the server's clock. Must not know: why a limit is what it
-- is. It is the arithmetic of policies/quota.py; the contract's tests run both. Numbers are doubles,
-- whole up to 2^53; a counter of money may be larger, so it is read in two limbs and written by HINCRBY.
--
-- KEYS  the reservation; then for each account its hash and its leases
-- ARGV  the call: id, lease in ms, fixed and per output by unit, output; then each account's rules:
--       interval, tolerance, concurrent, time to live in ms, fields of the hash, meters
--       (slot, unit, window, is a budget, limit by limbs of 10^9). Both by msgpack.
-- Returns status, server time in us, output, the account without a free slot, then the fields read.

local ADMITTED, REFUSED, FULL, KNOWN = 1, 2, 3, 4
local LIMB, LARGEST = 1e9, 9007199254740991

local function whole(number)
  return string.format("%.0f", number)
end

local function month_of(day) -- days since 1970 to months since year 0 (civil_from_days, H. Hinnant)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return year * 12 + month - 1
end

local function left_of(meter, used)
  local high, low = 0, 0
  if #used > 9 then
    high, low = tonumber(string.sub(used, 1, -10)), tonumber(string.sub(used, -9))
  else
    low = tonumber(used)
  end
  return math.min((meter[5] - high) * LIMB + (meter[6] - low), LARGEST)
end

local ask = cmsgpack.unpack(ARGV[1])
local id, lease_ms, fixed, per, output = ask[1], ask[2], ask[3], ask[4], ask[5]

local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local day = math.floor(now / 86400000000)
local windows = { math.floor(now / 60000000), day, month_of(day) }

if redis.call("EXISTS", KEYS[1]) == 1 then
  return { KNOWN, now, 0, 0 } -- given up before it came here, or sent twice
end

local accounts, reply = {}, { REFUSED, now, 0, 0 }
local refused = false
for i = 2, #ARGV do
  local rules = cmsgpack.unpack(ARGV[i])
  local key, leases = KEYS[2 * i - 2], KEYS[2 * i - 1]
  local read = redis.call("HMGET", key, unpack(rules[5]))
  reply[#reply + 1] = read
  local tat = math.min(tonumber(read[1] or "0"), now + rules[2])
  if rules[1] > 0 and tat > now and tat + rules[1] - rules[2] - now > 0 then
    refused = true
  end
  local lefts = {}
  for m, meter in ipairs(rules[6]) do
    local used = tonumber(read[2 * m]) == windows[meter[3] + 1] and read[2 * m + 1] or "0"
    local left, unit = left_of(meter, used), meter[2] + 1
    local room = (meter[4] and left or left_of(meter, "0")) - fixed[unit]
    if per[unit] * output > room then
      if per[unit] > 0 and room >= per[unit] then
        output = math.floor(room / per[unit])
        if output * per[unit] > room then
          output = output - 1
        end
      else
        refused = true
      end
    end
    lefts[m] = left
  end
  accounts[#accounts + 1] = { key = key, leases = leases, rules = rules, tat = tat, read = read, lefts = lefts }
end
for _, account in ipairs(accounts) do
  for m, meter in ipairs(account.rules[6]) do
    local unit = meter[2] + 1
    if not meter[4] and fixed[unit] + per[unit] * output > account.lefts[m] then
      refused = true
    end
  end
end
if refused then
  return reply
end

for i, account in ipairs(accounts) do
  local concurrent = account.rules[3]
  if concurrent > 0 then
    redis.call("ZREMRANGEBYSCORE", account.leases, "-inf", now_ms)
    if redis.call("ZCARD", account.leases) >= concurrent then
      reply[1], reply[4] = FULL, i
      return reply
    end
  end
end

local amount = {}
for unit = 1, 3 do
  amount[unit] = fixed[unit] + per[unit] * output
end
for _, account in ipairs(accounts) do
  local rules, read, key = account.rules, account.read, account.key
  if rules[1] > 0 then
    redis.call("HSET", key, "t", whole(math.max(now, account.tat) + rules[1]))
  end
  for m, meter in ipairs(rules[6]) do
    local window, charged = windows[meter[3] + 1], whole(amount[meter[2] + 1])
    if tonumber(read[2 * m]) == window then
      redis.call("HINCRBY", key, "u" .. meter[1], charged)
    else
      redis.call("HSET", key, "w" .. meter[1], window, "u" .. meter[1], charged)
    end
  end
  redis.call("PEXPIRE", key, rules[4])
  if rules[3] > 0 then
    redis.call("ZADD", account.leases, now_ms + lease_ms, id)
    redis.call("PEXPIRE", account.leases, lease_ms)
  end
end
local held = { whole(amount[1]), whole(amount[2]), whole(amount[3]), windows[1], windows[2], windows[3] }
redis.call("SET", KEYS[1], table.concat(held, " "), "PX", lease_ms)
reply[1], reply[3] = ADMITTED, output
return reply
