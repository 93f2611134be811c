-- Watches answers pass: when the first byte came, how many events, what was used, whether it ended.
--
-- Knows: SSE framing and the words "usage", "choices" and [DONE]. Must not know: prices, limits, who
-- calls. It parses no JSON but an event it may have to drop, and its work per chunk is bounded by the
-- chunk: what it keeps between chunks is bounded by the limits below.
--
-- Writes dynamic metadata `llm.stream`, `seen`: a text of milliseconds to the first chunk (or -), events,
-- the bytes they were in, 1 for an answer that ended, and what was used, a space between each. One text,
-- because each value written takes Envoy longer than a chunk does. It is written as the chunks pass,
-- because the log must be right whenever the client leaves; for the count alone, which only estimates
-- need, when it has doubled. Of what it cannot read (another type, compressed) it tells the end alone.
--
-- keep.lua, before this in the same script, collects what passes where the plan asks for it.
--
-- Quotes inside a JSON string are escaped, so `"usage"` with bare quotes is always a JSON token.

local byte, find, match, sub, concat = string.byte, string.find, string.match, string.sub, table.concat

local NAMESPACE = "llm.stream"
local USAGE_BYTES = 2048 -- several times the longest usage object of any provider
local OVERLAP_BYTES = 64 -- a key, a colon and spacing, cut anywhere
local HEAD_BYTES = 64 -- what tells the kind of an event
local HOLD_BYTES = 1048576 -- an event longer than this is passed on unseen
local BLANK_LINE = "\n\r?\n"
local BLANK_LINE_OVERLAP = 2
local USAGE_OBJECT = '"usage"%s*:%s*{'
local NO_CHOICES = '"choices"%s*:%s*%[%s*%]'
local SOME_CHOICES = '"choices"%s*:%s*%[%s*[^%]%s]'
local TERMINAL = {
  ["response.completed"] = true,
  ["response.incomplete"] = true,
  ["response.failed"] = true,
  ["message_stop"] = true,
}
local QUOTE, BACKSLASH, OPEN, OPEN_LIST = byte('"'), byte("\\"), byte("{"), byte("[")

-- Usage: the last `"usage": {` of the body, to its closing brace where that comes soon enough.
-- Anthropic's streams say in their first event what the prompt came to and in a later one what was
-- generated: of a stream that opens so the first object is kept too, and written before the last.

local function opens_a_message(opening)
  local text = match(opening, "^[\r\n]*(.*)")
  return find(text, "^event:%s*message_start") ~= nil
    or find(text, '^data:%s*{%s*"type"%s*:%s*"message_start"') ~= nil
end

local function begin_usage(seen, text)
  if seen.usage == nil then
    seen.of_start = opens_a_message(seen.opening)
  elseif seen.of_start then
    seen.of_start, seen.start = false, seen.usage
  end
  local whole = match(text, '^"usage"%s*:%s*%b{}')
  seen.usage, seen.whole = whole or text, whole ~= nil
end

local function told_usage(seen)
  if seen.start ~= nil then
    return "message_start " .. seen.start .. " " .. seen.usage
  end
  return seen.of_start and "message_start " .. seen.usage or seen.usage
end

local function see_usage(seen, text)
  local window = seen.overlap .. text
  local changed, from = false, 1
  if #seen.opening < HEAD_BYTES then
    seen.opening = seen.opening .. sub(text, 1, HEAD_BYTES - #seen.opening)
  end
  if seen.usage ~= nil and #seen.usage < USAGE_BYTES and not seen.whole then
    local longer = seen.usage .. sub(text, 1, USAGE_BYTES - #seen.usage)
    local whole = match(longer, '^"usage"%s*:%s*%b{}')
    seen.usage, seen.whole, changed = whole or longer, whole ~= nil, true
  end
  while true do
    local start = find(window, '"usage"', from, true)
    if start == nil then
      break
    end
    local _, brace = find(window, "^%s*:%s*{", start + 7)
    if brace ~= nil and brace > #seen.overlap then -- else it was seen when its chunk came
      begin_usage(seen, sub(window, start, start + USAGE_BYTES - 1))
      changed = true
    end
    from = start + 7
  end
  seen.overlap = sub(window, -OVERLAP_BYTES)
  return changed
end

-- The event that carries usage alone: `choices` is empty and `usage` an object, at the top level.

local function may_be_data(head)
  local text = match(head, "^[\r\n]*(.*)")
  return byte(text) ~= 58 and not find(text, "^data:%s*[^%s{]") -- 58 is a comment's colon
end

local function is_usage_event(event)
  if
    not find(event, USAGE_OBJECT)
    or not find(event, NO_CHOICES)
    or find(event, SOME_CHOICES)
    or not may_be_data(sub(event, 1, HEAD_BYTES))
  then
    return false
  end
  local depth, empty, used = 0, false, false
  local at = find(event, "{", 1, true)
  while at ~= nil do
    local char = byte(event, at)
    if char == QUOTE then
      local stop = find(event, '["\\]', at + 1)
      while stop ~= nil and byte(event, stop) == BACKSLASH do
        stop = find(event, '["\\]', stop + 2)
      end
      if stop == nil then
        return false
      end
      local word = depth == 1 and sub(event, at, stop)
      if word == '"choices"' then
        empty = find(event, "^%s*:%s*%[%s*%]", stop + 1) ~= nil
      elseif word == '"usage"' then
        used = find(event, "^%s*:%s*{", stop + 1) ~= nil
      end
      at = stop
    elseif char == OPEN or char == OPEN_LIST then
      depth = depth + 1
    else
      depth = depth - 1
    end
    at = find(event, '["{}%[%]]', at + 1)
  end
  return empty and used
end

local function without_usage_event(event)
  return is_usage_event(event) and match(event, "^[\r\n]*") or event
end

-- Events: counted where they end; their kind is told by their head.

local function see_event(seen, head)
  local text = match(head, "^[\r\n]*(.*)")
  if find(text, "^data:%s*%[DONE%]") then
    seen.done = true
    return
  end
  local name = match(text, "^event:%s*([%w_.]+)") or match(text, '^data:%s*{%s*"type"%s*:%s*"([%w_.]+)"')
  if name ~= nil and TERMINAL[name] then
    seen.done = true
  end
  if name ~= nil or find(text, "^data:") then
    seen.events = seen.events + 1
  end
end

local function begin_event(seen)
  seen.head, seen.back, seen.near, seen.decided = "", "", "", false
end

-- What is held of an unfinished event, in strip mode.

local function take_held(seen)
  local text = concat(seen.held)
  seen.held, seen.held_bytes = {}, 0
  return text
end

local function may_be_usage_event(seen, piece)
  if seen.decided then
    return false
  end
  local window = seen.near .. piece
  seen.near = sub(window, -OVERLAP_BYTES)
  if
    seen.held_bytes + #piece > HOLD_BYTES
    or not may_be_data(seen.head)
    or find(window, SOME_CHOICES)
  then
    seen.decided = true
  end
  return not seen.decided
end

-- Nearly every chunk is whole events with a piece of text each, of which only the number is kept.
-- Returns it, nil for anything else. A member's name cannot be cut where an event has ended. Without
-- patterns where it can be, because LuaJIT compiles plain searches alone.

local function count_plain(seen, text)
  if
    seen.events == 0
    or seen.head ~= ""
    or seen.back ~= ""
    or seen.held_bytes > 0
    or (seen.usage ~= nil and not seen.whole)
  then
    return nil
  end
  local usage = find(text, '"usage"', 1, true)
  while usage ~= nil do
    if sub(text, usage + 7, usage + 11) ~= ":null" then
      return nil
    end
    usage = find(text, '"usage"', usage + 7, true)
  end
  local size, at, count = #text, 1, 0
  while at <= size do
    local _, stop = find(text, "\n\n", at, true)
    if stop == nil then
      return nil
    end
    local kind = byte(text, at)
    if kind == 100 then -- "d"
      if sub(text, at, at + 7) ~= 'data: {"' or byte(text, at + 8) == 116 then
        return nil -- one that begins with its "type" may be the last
      end
    elseif kind == 101 then -- "e"
      local name = match(text, "^event: ([%w_.]+)\n", at)
      if name == nil or TERMINAL[name] then
        return nil
      end
    else
      return nil
    end
    count, at = count + 1, stop + 1
  end
  return count
end

-- Read one chunk; returns what to send in its place, nil for the chunk as it is.

local function see_chunk(seen, text)
  local plain = count_plain(seen, text)
  if plain ~= nil then
    seen.events, seen.overlap = seen.events + plain, ""
    return nil, false
  end
  local usage_changed = see_usage(seen, text)
  local strip = seen.strip
  local may_drop = strip and find(text, '"usage"', 1, true) ~= nil
  local out, kept_from = nil, 1 -- `out` is made when the first byte moves
  local at, size = 1, #text
  while at <= size do
    local stop
    if seen.back ~= "" then
      _, stop = find(seen.back .. text, BLANK_LINE)
      stop = stop and stop - #seen.back
    else
      _, stop = find(text, BLANK_LINE, at)
    end
    local last = stop or size
    if #seen.head < HEAD_BYTES then
      seen.head = seen.head .. sub(text, at, math.min(last, at + HEAD_BYTES - #seen.head - 1))
    end
    if stop == nil then
      local piece = sub(text, at)
      seen.back = sub(seen.back .. piece, -BLANK_LINE_OVERLAP)
      if strip then
        if may_be_usage_event(seen, piece) then
          out = out or {}
          out[#out + 1] = sub(text, kept_from, at - 1)
          seen.held[#seen.held + 1] = piece
          seen.held_bytes = seen.held_bytes + #piece
          kept_from = size + 1
        elseif seen.held_bytes > 0 then
          out = { take_held(seen) } -- held bytes are always older than this chunk
        end
      end
      break
    end
    if strip then
      if seen.held_bytes > 0 then
        out = { without_usage_event(take_held(seen) .. sub(text, 1, stop)) }
        kept_from = stop + 1
      elseif may_drop and not seen.decided and is_usage_event(sub(text, at, stop)) then
        out = out or {}
        local blank = match(text, "^[\r\n]*", at) -- lines before the event are not its own
        out[#out + 1] = sub(text, kept_from, at + #blank - 1)
        kept_from = stop + 1
      end
    end
    see_event(seen, seen.head)
    begin_event(seen)
    at = stop + 1
  end
  if not seen.done and find(seen.head, "^[\r\n]*data:%s*%[DONE%]") then
    seen.done = true -- the caller may leave before the blank line
  end
  if out ~= nil then
    out[#out + 1] = sub(text, kept_from)
    return concat(out), usage_changed
  end
  return nil, usage_changed
end

local function tell(handle, seen)
  local done = seen.done and 1 or 0
  local usage = seen.usage ~= nil and told_usage(seen) or ""
  local text = string.format("%s %d %d %d %s", seen.first, seen.events, seen.bytes, done, usage)
  -- Fetched afresh, because handles kept over a chunk are out of scope.
  handle:streamInfo():dynamicMetadata():set(NAMESPACE, "seen", text)
  seen.told, seen.told_bytes = seen.events, seen.bytes
end

-- What is still held when the answer ends goes out with its last chunk, which may be empty. After
-- HTTP/2 trailers there is no chunk to add to: an event cut short there is lost, as it is to a caller.

local function flush(seen, chunk)
  local event = without_usage_event(take_held(seen))
  pcall(function()
    chunk:setBytes(chunk:getBytes(0, chunk:length()) .. event)
  end)
end

local function watch_events(handle, seen, started)
  local latest
  for chunk in handle:bodyChunks() do
    latest = chunk
    local size = chunk:length()
    if size > 0 then
      local due = seen.bytes == 0
      if due then
        seen.first = tostring(handle:timestamp(EnvoyTimestampResolution.MILLISECOND) - started)
      end
      seen.bytes = seen.bytes + size
      local done, text = seen.done, chunk:getBytes(0, size)
      if seen.kept ~= nil then
        keep(seen, text)
      end
      local replaced, usage_changed = see_chunk(seen, text)
      if replaced ~= nil then
        chunk:setBytes(replaced)
      end
      if due or usage_changed or seen.done ~= done or seen.events > 2 * seen.told then
        tell(handle, seen)
      end
    end
  end
  if seen.bytes ~= seen.told_bytes then
    tell(handle, seen)
  end
  if seen.held_bytes > 0 then
    flush(seen, latest)
  end
  if seen.kept ~= nil and seen.done then
    tell_answer(handle, seen)
  end
end

jit.off(watch_events) -- compiled it takes longer: nearly all of it is calls of Envoy's functions

local function watch_document(handle, seen, readable, announced)
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    seen.bytes = seen.bytes + size
    if readable and size > 0 then
      local text = chunk:getBytes(0, size)
      if seen.kept ~= nil then
        keep(seen, text)
      end
      -- Of the last chunk the end will tell.
      if see_usage(seen, text) and seen.bytes ~= announced then
        tell(handle, seen)
      end
    end
  end
  seen.done = true
  tell(handle, seen)
  if seen.kept ~= nil then
    tell_answer(handle, seen)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if byte(headers:get(":status")) ~= 50 then -- 50 is "2": an error has no usage
    return
  end
  local plan = handle:streamInfo():dynamicMetadata():get("llm.call")
  if plan == nil or plan["suffix"] == nil then -- no provider's answer
    return
  end
  local seen = { overlap = "", opening = "", whole = false, done = false }
  seen.first, seen.events, seen.bytes, seen.told, seen.told_bytes = "-", 0, 0, 0, 0
  local kind = headers:get("content-encoding") == nil and headers:get("content-type") or ""
  if find(kind, "text/event-stream", 1, true) ~= 1 then
    local readable = find(kind, "application/json", 1, true) == 1
    begin_keeping(seen, plan, headers, readable and "json" or nil)
    local announced = headers:get("content-length")
    return watch_document(handle, seen, readable, tonumber(announced))
  end
  begin_keeping(seen, plan, headers, "sse")
  seen.strip = plan["strip_usage"] == true
  seen.held, seen.held_bytes = {}, 0
  begin_event(seen)
  if seen.strip then
    headers:remove("content-length") -- it counts the event that will not be sent
  end
  watch_events(handle, seen, handle:timestamp(EnvoyTimestampResolution.MILLISECOND))
end
