-- wrk script: POST one body, each request with its own number in it so that no gateway can answer
-- from a cache, and print what was measured as one line of JSON.
--   BENCH_BODY     file with the body; "@@@@@@@@@@@@@@@@" in it is where the number goes
--   BENCH_HEADERS  header lines "name: value"
--   BENCH_UNIQUE   "0" sends the same number every time
--   BENCH_STATUSES "1" counts the refusals by status, at a few microseconds of wrk's for each answer
local MARK = string.rep("@", 16)
local head, tail, step, number

local function read(path)
  local file = assert(io.open(path, "rb"))
  local data = file:read("*a")
  file:close()
  return data
end

local threads = {}
statuses = {}  -- of each thread, global because that is what thread:get reads

function setup(thread)
  threads[#threads + 1] = thread
end

if os.getenv("BENCH_STATUSES") == "1" then
  function response(status)
    if status >= 400 then
      local name = tostring(status)
      statuses[name] = (statuses[name] or 0) + 1
    end
  end
end

local function refusals()
  local sums, parts = {}, {}
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("statuses")) do
      sums[name] = (sums[name] or 0) + count
    end
  end
  for name, count in pairs(sums) do
    parts[#parts + 1] = string.format('"%s": %d', name, count)
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function init(args)
  wrk.method = "POST"
  for line in string.gmatch(os.getenv("BENCH_HEADERS") or "", "[^\n]+") do
    local name, value = string.match(line, "^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
  local request = wrk.format(nil, nil, nil, read(os.getenv("BENCH_BODY")))
  local first, last = string.find(request, MARK, 1, true)
  assert(first, "the body has no place for the number")
  head, tail = string.sub(request, 1, first - 1), string.sub(request, last + 1)
  step = os.getenv("BENCH_UNIQUE") == "0" and 0 or 1
  number = step * os.time() * 1000000  -- a later run never repeats a number of an earlier one
end

function request()
  number = number + step
  return head .. string.format("%016.0f", number) .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nBENCH {"requests": %d, "duration_us": %d, "bytes": %d, "p50_us": %d, "p90_us": %d, ' ..
    '"p99_us": %d, "max_us": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, ' ..
    '"status": %d, "statuses": %s}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(90), latency:percentile(99), latency.max, errors.connect, errors.read,
    errors.write, errors.timeout, errors.status, refusals()))
end
