"""A server seen from outside: a client for programs, and load tests that say how fast, right and cheap it is."""
