"""The Open Inference Protocol v2, over HTTP, with the extensions that its clients rely on.

Everything here but `routes` is pure: bytes and plain values in, bytes and plain values out. `ports` says what the
routes need of the server.
"""
