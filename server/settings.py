"""Every knob of the server, typed, with its unit in its name.

Values come from arguments first, then from environment variables named after the field with the prefix `RESCADE_`.
pydantic-settings lets a misspelt variable pass in silence, even where unknown keys are forbidden, so unknown names
under the prefix are refused here. In Kubernetes that means `enableServiceLinks: false` for a service called rescade,
since its links are variables under the same prefix.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "RESCADE_"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


def _paths(value: Any) -> Any:
    """One path for several, and the text of a variable taken apart."""
    if isinstance(value, str):
        return tuple(part for part in value.split(os.pathsep) if part)
    return (value,) if isinstance(value, Path) else value


def _texts(value: Any) -> Any:
    """Several texts in one, separated by commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Digest = Annotated[str, AfterValidator(str.lower), Field(pattern=r"^[0-9a-fA-F]{64}$")]
Digests = Annotated[tuple[Digest, ...], NoDecode, BeforeValidator(_texts)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


class StrictEnvironment(EnvSettingsSource):
    """The environment, with every name under the prefix accounted for."""

    def __call__(self) -> dict[str, Any]:
        """Read the known names.

        Raises:
            ValueError: a name under the prefix is no setting.
        """
        known = {PREFIX + name.upper() for name in self.settings_cls.model_fields}
        unknown = sorted(
            name for name in map(str.upper, self.env_vars) if name.startswith(PREFIX) and name not in known
        )
        if unknown:
            raise ValueError(f"unknown environment variable {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return super().__call__()


class ServerSettings(BaseSettings):
    """What a server process is told at its start; frozen from then on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    bundle: Annotated[Paths, Field(min_length=1, description="bundles to serve, or folders of bundles")]
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    grpc_port: Annotated[
        int | None, Field(ge=0, le=65535, description="port to listen on for gRPC, if any; 0 takes a free one")
    ] = None
    workers: Annotated[int, Field(gt=0, le=1024, description="server processes")] = 1
    device: Annotated[
        str, Field(pattern=r"^(cpu|(cuda|tensorrt):\d+)$", description="cpu, or cuda:N or tensorrt:N for the N-th GPU")
    ] = "cpu"
    cuda_graphs: Annotated[bool, Field(description="on a GPU, capture each network at each batch size as a graph")] = (
        False
    )
    tensorrt_cache: Annotated[
        Path | None, Field(description="folder where TensorRT keeps its engines, which take minutes to build")
    ] = None
    threads: Annotated[Positive, Field(description="threads a worker gives to one network on the CPU")] = 1
    decode_threads: Annotated[Positive, Field(description="threads a worker decodes requests in")] = 2
    keep_cores: Annotated[
        bool, Field(description="on the CPU, with one worker a core: keep each worker's event loop on its own core")
    ] = True
    threshold: Annotated[float | None, Field(description="energy to be exceeded; default: the bundle's own")] = None
    profile: Annotated[str | None, Field(description="the bundles' thresholds of that name; not with a threshold")] = (
        None
    )
    trusted_keys: Annotated[
        Paths | None,
        Field(min_length=1, description="public keys, PEM, one of which must have signed a bundle; default: none need"),
    ] = None
    self_test: Annotated[
        bool, Field(description="run a bundle's golden samples through its networks before it is served")
    ] = False
    max_body_bytes: Annotated[Positive, Field(description="largest request body")] = 16 * 2**20
    max_buffered_bytes: Annotated[Positive, Field(description="bodies a worker holds at once, together")] = 256 * 2**20
    max_pixels: Annotated[Positive, Field(description="largest image, width times height")] = 25_000_000
    max_images: Annotated[Positive, Field(description="images in one request")] = 256
    max_in_flight: Annotated[Positive, Field(description="requests a worker has in hand at once")] = 256
    max_queue: Annotated[Positive, Field(description="images a worker has in its queues and batches at once")] = 1024
    max_batch: Annotated[int, Field(gt=0, le=1024, description="images in one run of a network")] = 32
    max_wait_ms: Annotated[
        float,
        Field(ge=0, le=60_000, description="longest wait for a batch to fill, where that repays; on a CPU never"),
    ] = 2.0
    request_timeout_s: Annotated[Seconds, Field(description="longest time from the first byte to the answer")] = 30.0
    reload_timeout_s: Annotated[Seconds, Field(description="longest time a process may take to open new bundles")] = (
        60.0
    )
    admin_key_sha256: Annotated[
        Digest | None, Field(description="SHA-256, in hex, of the key that /admin asks for; without it or a port, none")
    ] = None
    admin_host: Annotated[str, Field(description="address of the admin port")] = "127.0.0.1"
    admin_port: Annotated[
        int | None, Field(ge=0, le=65535, description="port of their own for /admin and /metrics; 0 takes a free one")
    ] = None
    api_keys_sha256: Annotated[
        Digests, Field(description="SHA-256 of the keys that all but health asks for, separated by commas")
    ] = ()
    rate_limit_per_s: Annotated[
        float | None, Field(gt=0, description="requests a second a worker takes from one key, or from one address")
    ] = None
    tls_cert: Annotated[Path | None, Field(description="certificate chain, PEM; with it every port speaks TLS")] = None
    tls_key: Annotated[Path | None, Field(description="the certificate's key, PEM, if it is not in the same file")] = (
        None
    )
    tls_key_password: Annotated[SecretStr | None, Field(description="of that key; better given as a variable")] = None
    tls_ca: Annotated[
        Path | None, Field(description="authorities, PEM, one of which clients need a certificate of")
    ] = None
    drain_delay_s: Annotated[
        float, Field(ge=0, description="time between turning not ready and closing the port, after SIGTERM")
    ] = 0.0
    drain_timeout_s: Annotated[Seconds, Field(description="longest wait for requests in hand, after SIGTERM")] = 30.0
    keep_alive_s: Annotated[Positive, Field(description="longest silence on a connection that is kept")] = 30
    otel_endpoint: Annotated[
        str | None,
        Field(pattern=r"^https?://[^/\s]+\S*$", description="where spans are sent, by OTLP over HTTP; default nowhere"),
    ] = None
    otel_sample_ratio: Annotated[
        float, Field(ge=0, le=1, description="of the requests to trace, where no traceparent header decides that")
    ] = 1.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least level that is logged, on stderr")
    ] = "info"

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_images > self.max_queue:
            raise ValueError(f"max_images {self.max_images} is more than max_queue {self.max_queue} can ever hold")
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ValueError("max_body_bytes is more than max_buffered_bytes can ever hold")
        return self

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.threshold is not None and self.profile is not None:
            raise ValueError("threshold and profile are both given: give one, since a profile is a threshold by name")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_key_password or self.tls_ca):
            raise ValueError("tls_key, tls_key_password and tls_ca need a tls_cert")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; no files."""
        return init_settings, StrictEnvironment(settings_cls)
