-- Addresses a call to the provider of this attempt: path, host, and the model's name there.
--
-- Knows: its provider's address (BASE_PATH and AUTHORITY, set above), the plan in dynamic metadata `llm` and the attempt's number. Must not know: JSON beyond one
-- string, other providers. Envoy hands every attempt the body the processor forwarded, but one header
-- map for all attempts: so what an attempt does not set is what an earlier one left.

local escape = function(char)
  return string.format("\\u%04x", string.byte(char))
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local plan = metadata:get("llm")
  if plan == nil or plan["models"] == nil then
    return
  end
  handle:headers():replace(":path", BASE_PATH .. plan["suffix"])
  handle:headers():replace(":authority", AUTHORITY)
  local attempt = tonumber(handle:headers():get("x-envoy-attempt-count")) or 1
  local models = plan["models"]
  local model = models[attempt] or models[#models]
  local served = attempt > 1 and metadata:get("llm.served") or nil
  metadata:set("llm.served", "model", model)

  if model == models[1] then
    -- The body is right as it is, but an earlier attempt may have announced another length.
    if served ~= nil and served["length"] ~= nil then
      handle:headers():replace("content-length", string.format("%d", served["length"]))
    end
    return
  end

  local body = handle:body() -- waits for all of it, which is why only a different name asks
  if body == nil then
    return
  end
  local length = body:length()
  local before = body:getBytes(0, plan["model_start"])
  local after = body:getBytes(plan["model_stop"], length - plan["model_stop"])
  local text = before .. '"' .. string.gsub(model, '[%c"\\]', escape) .. '"' .. after
  body:setBytes(text)
  handle:headers():replace("content-length", string.format("%d", #text))
  handle:streamInfo():dynamicMetadata():set("llm.served", "length", length)
end
