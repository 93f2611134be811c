"""The response cache on a call's way: `flow` is the order, `turn` one call, `batch` inputs one by
one, `fill` what is kept afterwards.

Knows: the rules in `extproc.cache`, the ports of stores and flights. Must not know: where answers
are kept, protobuf, transports.
"""
