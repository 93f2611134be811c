"""The wire: protobuf messages from bytes to what the pipeline knows, and back.

Knows: Envoy's messages, field by field. Must not know: transports, policies or state.
`messages` are ext_proc's of a call, `attempts` those of a filter in a provider's cluster, `logs`
the access log's; the others read and write their parts.
"""
