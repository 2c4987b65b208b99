"""How often a client may ask: a bucket of tokens each. Plain calls, plain data, time from whoever makes it."""

from __future__ import annotations

from collections.abc import Callable

MOST = 10_000  # clients remembered; beyond that, those whose bucket has filled up again are forgotten


class Buckets:
    """One bucket a client: it fills at a steady rate up to a second's worth, and each request takes one token.

    Args:
        per_s: tokens a second.
        clock: seconds, steady.
    """

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s, self._clock = per_s, clock
        self._size = max(1.0, per_s)
        self._full_at: dict[str, float] = {}

    def take(self, client: str) -> float:
        """Take a token; gives back 0, or the seconds until there will be one."""
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now))
        wait_s = full_at + 1 / self._per_s - now - self._size / self._per_s
        if wait_s > 1e-9:  # less is rounding
            return wait_s
        if client not in self._full_at and len(self._full_at) >= MOST:
            self._full_at = {each: when for each, when in self._full_at.items() if when > now}
        self._full_at[client] = full_at + 1 / self._per_s
        return 0.0
