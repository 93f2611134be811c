-- Addresses a call to a provider of another dialect: path, host, and the model's name there.
--
-- Knows: its provider's address (PATH and AUTHORITY, set above), the call in dynamic metadata
-- `llm.call` and the attempt's number. Must not know: bodies: the filter after it writes another.
-- Envoy has one header map for all attempts, so what the body's length was is kept for a later one.

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local call = metadata:get("llm.call")
  if call == nil then
    return
  end
  local headers = handle:headers()
  headers:replace(":path", PATH)
  headers:replace(":authority", AUTHORITY)
  local attempt = tonumber(headers:get("x-envoy-attempt-count")) or 1
  local models = call["models"]
  metadata:set("llm.served", "model", models[attempt] or models[#models])
  local served = metadata:get("llm.served")
  if served["length"] == nil then
    metadata:set("llm.served", "length", tonumber(headers:get("content-length")) or -1)
  end
end
