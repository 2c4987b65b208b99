"""Who may ask what: keys, how often, and on which port. Health is everybody's to ask.

What changes the server needs the admin key, or comes by the admin port, which nobody can reach from outside unless it
is told to listen there. Where neither is set, there is nothing to ask. Keys are kept as digests and compared in
constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cascade.errors import Forbidden, NotFound, TooManyRequests, Unauthorized
from server.rate import Buckets
from server.settings import ServerSettings

HEALTH = ("/health/", "/v2/health/")
ADMIN = ("/admin/", "/v2/repository/")
METRICS = "/metrics"
MARK = "rescade.admin_port"


class AdminPort:
    """ASGI middleware that marks what came by the admin port.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Mark a request and pass it on."""
        scope[MARK] = True
        await self._app(scope, receive, send)


class Gate:
    """Lets requests through, or says why not.

    Args:
        settings: keys, limits and ports.
        clock: seconds, steady.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._admin_keys = () if settings.admin_key_sha256 is None else (settings.admin_key_sha256,)
        self._api_keys = settings.api_keys_sha256
        self._has_port = settings.admin_port is not None
        self._per_s = settings.rate_limit_per_s
        self._buckets = None if self._per_s is None else Buckets(self._per_s, clock)
        self._asks_nothing = not self._api_keys and not self._has_port and self._buckets is None

    def check(self, scope: Scope) -> None:
        """Look at a request before anything else does.

        Raises:
            NotFound: there is no such thing on this port.
            Unauthorized: a key is needed.
            Forbidden: it is the wrong one.
            TooManyRequests: the client asks too often.
        """
        path: str = scope["path"]
        for_admins = path.startswith(ADMIN)
        if path.startswith(HEALTH) or (self._asks_nothing and not for_admins):
            return
        by_admin_port = MARK in scope
        if not self._is_here(path, by_admin_port, for_admins):
            raise NotFound(f"there is nothing at {path}: see /docs")
        if for_admins:
            _check_key(scope, "X-Admin-Key", self._admin_keys)
        elif not by_admin_port:
            self._check_rate(_check_key(scope, "X-Api-Key", self._api_keys) or _address(scope))

    def check_admin(self, scope: Scope) -> None:
        """Look at what came past `check`, by another protocol, and would see or change what is served.

        Raises:
            NotFound: nobody may, by that protocol.
            Unauthorized: a key is needed.
            Forbidden: it is the wrong one.
        """
        if MARK not in scope and not self._admin_keys:
            raise NotFound("models are not managed here: start the server with admin_key_sha256")
        _check_key(scope, "X-Admin-Key", self._admin_keys)

    def check_headers(self, headers: Headers) -> None:
        """Look at what came by another protocol and asks for answers.

        Raises:
            Unauthorized: a key is needed.
            Forbidden: it is the wrong one.
            TooManyRequests: the client asks too often.
        """
        scope = {"headers": headers.raw}
        self._check_rate(_check_key(scope, "X-Api-Key", self._api_keys) or _address(scope))

    def _is_here(self, path: str, by_admin_port: bool, for_admins: bool) -> bool:
        if self._has_port:
            return by_admin_port == (for_admins or path == METRICS)
        return bool(self._admin_keys) or not for_admins

    def _check_rate(self, client: str) -> None:
        if self._buckets is not None and (wait_s := self._buckets.take(client)):
            raise TooManyRequests(f"more than {self._per_s:g} requests a second: ask more slowly", wait_s)


def _check_key(scope: Scope, header: str, digests: Iterable[str]) -> str:
    """The digest of the key that was given, if one is needed.

    Raises:
        Unauthorized: there is none.
        Forbidden: it is the wrong one.
    """
    if not digests:
        return ""
    wanted = header.lower().encode()
    given = next((value for name, value in scope["headers"] if name == wanted), None)
    if given is None:
        raise Unauthorized(f"this needs a key: send it in the header {header}")
    digest = hashlib.sha256(given).hexdigest()
    if not sum(hmac.compare_digest(digest, each) for each in digests):  # every one, whichever it is
        raise Forbidden(f"the key in the header {header} is not one that may do this")
    return digest


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
