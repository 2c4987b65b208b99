"""Load tests from outside: ask a server over HTTP, and say how fast, how right and how cheap its answers were."""
