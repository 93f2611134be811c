-- wrk script: POST one body, each request with its own number in it so that no gateway can answer
-- from a cache, and print what was measured as one line of JSON.
--   BENCH_BODY     file with the body; "@@@@@@@@@@@@@@@@" in it is where the number goes
--   BENCH_HEADERS  header lines "name: value"
--   BENCH_UNIQUE   "0" sends the same number every time
local MARK = string.rep("@", 16)
local head, tail, step, number

local function read(path)
  local file = assert(io.open(path, "rb"))
  local data = file:read("*a")
  file:close()
  return data
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
    '"status": %d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(90), latency:percentile(99), latency.max, errors.connect, errors.read,
    errors.write, errors.timeout, errors.status))
end
