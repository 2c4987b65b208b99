"""Keys, limits and ports: who is let through to what, and what the others are told."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import httpx
import numpy as np
import pytest

from cascade.errors import NotFound, TooManyRequests
from server.gate import AdminPort, Gate
from server.schemas import Failure
from tests.builders import FakeClock, FakeRuntime
from tests.server.harness import client_of, serving, settings_for_tests

SURE = np.array([[[9.0, 0.0]]])
ONE = {"inputs": FakeRuntime.images([0]).tolist()}
ADMIN, API = "administrator", "somebody"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, Failure.model_validate_json(response.content).error.code


async def test_without_a_key_or_a_port_there_is_nothing_to_manage() -> None:
    async with serving(FakeRuntime(SURE)) as client:
        assert refusal(await client.get("/admin/models")) == (404, "not_found")
        protocol = await client.post("/v2/repository/models/tiny/unload")
    assert (protocol.status_code, protocol.json()["code"]) == (404, "not_found")
    assert isinstance(protocol.json()["error"], str)


async def test_the_admin_key_is_needed_and_must_be_right() -> None:
    async with serving(FakeRuntime(SURE), admin_key_sha256=digest(ADMIN).upper()) as client:
        missing = await client.get("/admin/models")
        wrong = await client.get("/admin/models", headers={"X-Admin-Key": "guess"})
        right = await client.get("/admin/models", headers={"X-Admin-Key": ADMIN})
        other = await client.post("/predict", json=ONE)
    assert refusal(missing) == (401, "unauthorized")
    assert missing.headers["WWW-Authenticate"] == "ApiKey"
    assert refusal(wrong) == (403, "forbidden")
    assert (right.status_code, other.status_code) == (200, 200)


async def test_every_api_key_is_good_for_everything_but_health_which_needs_none() -> None:
    keys = f"{digest('other')}, {digest(API)}"
    async with serving(FakeRuntime(SURE), api_keys_sha256=keys) as client:
        assert refusal(await client.post("/predict", json=ONE)) == (401, "unauthorized")
        assert refusal(await client.get("/metrics", headers={"X-Api-Key": "x"})) == (403, "forbidden")
        for key in ("other", API):
            assert (await client.post("/predict", json=ONE, headers={"X-Api-Key": key})).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_client_that_asks_too_often_is_told_when_to_come_back() -> None:
    async with serving(FakeRuntime(SURE), rate_limit_per_s=0.5) as client:
        first, second = await client.get("/bundle"), await client.post("/predict", json=ONE)
        health = await client.get("/health/live")
    assert (first.status_code, health.status_code) == (200, 200)
    assert refusal(second) == (429, "too_many_requests")
    assert second.headers["Retry-After"] == "2"


def asked(gate: Gate, **headers: str) -> int:
    """Requests that are let through before one is refused, of three."""
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"path": "/predict", "headers": fields, "client": None}
    number = 0
    with contextlib.suppress(TooManyRequests):
        for number in range(3):  # noqa: B007 - it is looked at below
            gate.check(scope)
    return number


def test_each_key_has_a_limit_of_its_own() -> None:
    keys = (digest("one"), digest("two"))
    gate = Gate(settings_for_tests(rate_limit_per_s=1, api_keys_sha256=keys), FakeClock())
    assert [asked(gate, **{"x-api-key": key}) for key in ("one", "two", "one")] == [1, 1, 0]


def test_clients_without_an_address_share_a_limit() -> None:
    gate = Gate(settings_for_tests(rate_limit_per_s=2), FakeClock())
    assert [asked(gate), asked(gate)] == [2, 0]


async def test_with_an_admin_port_managing_and_metrics_are_there_and_nothing_else() -> None:
    async with serving(FakeRuntime(SURE), admin_port=0, rate_limit_per_s=100) as client:
        public = [
            (await client.get(path)).status_code for path in ("/admin/models", "/metrics", "/bundle", "/health/live")
        ]
        async with client_of(AdminPort(client.app)) as admin:  # type: ignore[attr-defined]
            private = [
                (await admin.get(path)).status_code for path in ("/admin/models", "/metrics", "/bundle", "/health/live")
            ]
    assert public == [404, 404, 200, 200]
    assert private == [200, 200, 404, 200]


async def test_a_key_is_asked_for_on_the_admin_port_too() -> None:
    async with (
        serving(FakeRuntime(SURE), admin_port=0, admin_key_sha256=digest(ADMIN)) as client,
        client_of(AdminPort(client.app)) as admin,  # type: ignore[attr-defined]
    ):
        assert refusal(await admin.get("/admin/models")) == (401, "unauthorized")


@pytest.mark.parametrize("bad", ["short", digest(API) + "," + "z" * 64])
def test_what_is_no_digest_is_refused_at_the_start(bad: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        settings_for_tests(api_keys_sha256=bad)


def test_without_an_admin_key_nothing_is_managed_by_another_protocol() -> None:
    with pytest.raises(NotFound, match="admin_key_sha256"):
        Gate(settings_for_tests()).check_admin({"headers": []})
