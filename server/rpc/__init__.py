"""The Open Inference Protocol v2 over gRPC, on the engine that HTTP has, with the standard health service beside it.

A call is an HTTP/2 POST whose headers are its metadata, so it is handed to `server.oip.ports.Models` as a request like
any other: limits, keys and deadlines have one home. `tensors`, `documents` and `errors` are pure: messages and plain
values in, messages and plain values out. Nothing but `port` is imported where no gRPC port is asked for, since the
packages that the rest needs are an extra.
"""
