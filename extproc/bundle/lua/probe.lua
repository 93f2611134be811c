function envoy_on_response(h) end
