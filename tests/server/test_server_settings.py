"""Every knob is checked, from arguments and from the environment, and misspelt names are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.settings import ServerSettings


def test_the_defaults_serve_one_bundle_on_the_cpu() -> None:
    settings = ServerSettings(bundle=Path("b"))
    assert (settings.device, settings.workers, settings.max_wait_ms, settings.threshold) == ("cpu", 1, 2, None)


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_BUNDLE", "/there")
    monkeypatch.setenv("RESCADE_PORT", "9000")
    monkeypatch.setenv("RESCADE_MAX_BATCH", "7")
    settings = ServerSettings(port=9001)
    assert (settings.bundle, settings.port, settings.max_batch) == ((Path("/there"),), 9001, 7)


def test_several_bundles_are_joined_as_paths_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_BUNDLE", os.pathsep.join(["/one", "/two"]))
    assert ServerSettings().bundle == (Path("/one"), Path("/two"))
    assert ServerSettings(bundle=("a", "b")).bundle == (Path("a"), Path("b"))


def test_a_misspelt_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_THRESHHOLD", "0.5")
    with pytest.raises(ValueError, match=r"RESCADE_THRESHHOLD; known: .*RESCADE_THRESHOLD"):
        ServerSettings(bundle=Path("b"))


def test_keys_come_separated_by_commas_and_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = "a" * 64, "B" * 64
    monkeypatch.setenv("RESCADE_API_KEYS_SHA256", f"{one}, {two},")
    monkeypatch.setenv("RESCADE_TLS_KEY_PASSWORD", "hidden")
    settings = ServerSettings(bundle=Path("b"), tls_cert="cert.pem")
    assert settings.api_keys_sha256 == (one, two.lower())
    assert "hidden" not in repr(settings)


def test_trusted_keys_come_separated_like_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_TRUSTED_KEYS", f"a.pem{os.pathsep}b.pem")
    assert ServerSettings(bundle=Path("b")).trusted_keys == (Path("a.pem"), Path("b.pem"))


def test_no_trusted_keys_at_all_are_not_taken_for_none_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_TRUSTED_KEYS", "")
    with pytest.raises(ValidationError, match="trusted_keys"):
        ServerSettings(bundle=Path("b"))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ServerSettings(bundle=Path("b")).port = 1  # type: ignore[misc]


BAD: dict[str, dict[str, Any]] = {
    "unknown": {"treshold": 1},
    "nothing to serve": {"bundle": ()},
    "no device": {"device": "gpu"},
    "a device without a number": {"device": "cuda"},
    "a port beyond": {"port": 70_000},
    "no workers": {"workers": 0},
    "an endless threshold": {"threshold": float("nan")},
    "no time": {"request_timeout_s": 0},
    "a level": {"log_level": "loud"},
    "a collector without a scheme": {"otel_endpoint": "collector:4318"},
    "more than all": {"otel_sample_ratio": 2},
    "more images than places": {"max_images": 2000},
    "a key without a certificate": {"tls_key": "key.pem"},
    "a digest that is none": {"admin_key_sha256": "secret"},
    "a body that never fits": {"max_body_bytes": 2**30},
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_makes_no_sense_is_refused(case: str) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(**{"bundle": Path("b"), **BAD[case]})
