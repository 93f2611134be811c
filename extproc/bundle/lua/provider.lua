-- Addresses a call to the provider of this attempt: path, host, and the model's name there.
--
-- Knows: its provider's address (BASE_PATH and AUTHORITY, set above), the call in dynamic metadata
-- `llm.call` and the attempt's number. Must not know: JSON beyond one string, other providers. Envoy
-- hands every attempt the body the processor forwarded, but one header map for all attempts: so what
-- an attempt does not set is what an earlier one left.

local escape = function(char)
  return string.format("\\u%04x", string.byte(char))
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local call = metadata:get("llm.call")
  if call == nil then
    return
  end
  local headers = handle:headers()
  headers:replace(":path", BASE_PATH .. call["suffix"])
  headers:replace(":authority", AUTHORITY)
  local models = call["models"]
  if models == nil then
    return -- every target has one name for the model, and the body has it
  end
  local attempt = tonumber(headers:get("x-envoy-attempt-count")) or 1
  local model = models[attempt] or models[#models]
  local served = attempt > 1 and metadata:get("llm.served") or nil
  metadata:set("llm.served", "model", model)

  if model == models[1] then
    -- The body is right as it is, but an earlier attempt may have announced another length.
    local length = served ~= nil and served["length"] or nil
    if length == -1 then
      headers:remove("content-length") -- it was sent in chunks
    elseif length ~= nil then
      headers:replace("content-length", string.format("%d", length))
    end
    return
  end

  local body = handle:body() -- waits for all of it, which is why only a different name asks
  if body == nil then
    return
  end
  local length = body:length()
  local before = body:getBytes(0, call["model_start"])
  local after = body:getBytes(call["model_stop"], length - call["model_stop"])
  local text = before .. '"' .. string.gsub(model, '[%c"\\]', escape) .. '"' .. after
  body:setBytes(text)
  handle:headers():replace("content-length", string.format("%d", #text))
  handle:streamInfo():dynamicMetadata():set("llm.served", "length", length)
end
