-- Collects an answer whole, as the provider sent it, for whoever keeps answers.
--
-- Knows: chunks and how much may be collected. Must not know: what they say.
--
-- Where the plan says `keep_bytes`, a complete 200 answer of at most so many bytes is written once, at
-- its end, as dynamic metadata `llm.answer`: the body, named by its form (json or sse). The access log
-- carries it. An answer that grows too long, or comes while much is collected already, is let go of at
-- once.

local HEAP_KB = 131072 -- of all that one worker's script has in memory, garbage included

local function begin_keeping(seen, plan, headers, form)
  local most = plan["keep_bytes"]
  if most == nil or form == nil or headers:get(":status") ~= "200" then
    return
  end
  seen.form, seen.kept, seen.room = form, {}, most
  local said = headers:get("cache-status")
  if said ~= nil then
    headers:replace("cache-status", said .. "; stored") -- RFC 9211: as far as can be known by now
  end
end

local function keep(seen, text)
  local kept, room = seen.kept, seen.room - #text
  if room < 0 or collectgarbage("count") > HEAP_KB then
    seen.kept = nil
    return
  end
  kept[#kept + 1] = text
  seen.room = room
end

local function tell_answer(handle, seen)
  local body = table.concat(seen.kept)
  seen.kept = nil
  -- Envoy would cut the value at a zero byte, which neither JSON nor SSE has.
  if string.find(body, "\0", 1, true) == nil then
    handle:streamInfo():dynamicMetadata():set("llm.answer", seen.form, body)
  end
end

