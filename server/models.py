"""The models a process serves: which there are, which version is current, and what each is told by default.

A model is a bundle that is loaded. A request looks its model up once, and keeps it with the defaults of that moment to
its end; so every answer is of one version and one threshold, whatever is changed meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade.errors import NotReady, UnknownModel, UnknownProfile
from cascade.exits import Threshold
from cascade.manifest import Manifest
from server.commands import Override
from server.engine import Engine
from server.library import check_profile, natural
from server.metrics import Metrics
from server.runtime import Runtime
from server.scheduler import Limits
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

NO_OVERRIDES: Mapping[str, Override] = {}


@dataclass(frozen=True)
class Controls:
    """What a request gets that does not ask for something else.

    Attributes:
        threshold: energy to be exceeded; one for all stages, or one for each but the last.
        max_stage: the last stage that may run; None for the last there is.
    """

    threshold: Threshold
    max_stage: int | None = None


class Model:
    """One version of one bundle, with the engine that runs it.

    Whoever asks it holds it meanwhile, with `with`, and gets the controls of that moment; so a version that is replaced
    is closed once the last of its requests has been answered.

    Args:
        settings: limits, and the threshold or the profile that replaces the bundle's own threshold.
        runtime: runs its networks.
        metrics: told of every batch and exit.

    Raises:
        UnknownProfile: the bundle has no profile of the name that the settings give.
    """

    def __init__(self, settings: ServerSettings, runtime: Runtime, metrics: Metrics) -> None:
        limits = Limits(settings.max_queue, settings.max_batch, settings.max_wait_ms / 1000)
        self.manifest: Manifest = runtime.manifest
        self.document: bytes = runtime.manifest.model_dump_json().encode()
        self._profiles = {profile.name: profile.threshold for profile in runtime.manifest.profiles}
        bundles = runtime.manifest.exit.threshold
        self.own = Controls(self.threshold(settings.threshold, settings.profile, Controls(bundles)))
        self.controls = self.own
        self.engine = Engine(runtime, limits, metrics, inline=settings.device == "cpu")
        self.metrics = metrics.of_model(self.name, runtime.manifest.costs())
        self._holders, self._retired = 0, False

    def __enter__(self) -> Controls:
        return self.hold()

    def __exit__(self, *exception: object) -> None:
        self.let_go()

    def hold(self) -> Controls:
        """Keep it open, until `let_go`; gives the controls of this moment."""
        self._holders += 1
        return self.controls

    def let_go(self) -> None:
        """End what `hold` began."""
        self._holders -= 1
        self._close_if_empty()

    def retire(self) -> None:
        """Close the engine, now or once nobody holds the model any more."""
        self._retired = True
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._retired and not self._holders:
            self.engine.close(wait=False)

    def override(self, override: Override) -> None:
        """Replace its own values from now on, where something is given."""
        try:
            threshold = self.threshold(override.threshold, override.profile, self.own)
        except UnknownProfile as error:  # it came after the value was changed, and cannot be refused any more
            threshold = self.own.threshold
            logger.error("profile is not there", extra={"fields": {"model": self.name, "reason": str(error)}})
        self.controls = Controls(threshold, override.max_stage)

    def threshold(self, threshold: float | None, profile: str | None, controls: Controls) -> Threshold:
        """What is asked for, by number or by name, and otherwise what the controls say.

        Raises:
            UnknownProfile: there is no profile of that name; says which there are.
        """
        if profile is None:
            return controls.threshold if threshold is None else threshold
        check_profile(self.manifest, profile)
        return self._profiles[profile]

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.manifest.version

    @property
    def ready(self) -> bool:
        """Whether every stage is warm."""
        return self.engine.ready


class Models:
    """All of them. The first that was given answers where no name is; the highest version of a name is its current one.

    Args:
        models: in order.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        self._first: Model | None = None
        self.put(models)

    def put(self, models: Sequence[Model], overrides: Mapping[str, Override] = NO_OVERRIDES) -> None:
        """Have these, and no others, from now on, with these values by name."""
        for model in models:
            model.override(overrides.get(model.name, Override()))
        fresh: dict[str, dict[str, Model]] = {model.name: {} for model in models}
        for model in sorted(models, key=lambda model: natural(model.version)):
            fresh[model.name][model.version] = model
        self._models = fresh
        self._first = next(reversed(next(iter(fresh.values())).values())) if fresh else None

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """Look a model up.

        Args:
            name: default the first that was given.
            version: default the current one.

        Raises:
            UnknownModel: there is none of that name or version.
            NotReady: there is none at all yet.
        """
        if self._first is None:
            raise NotReady("the networks are being opened: try again in a second")
        if name is None and version is None:
            return self._first
        versions = self._models.get(next(iter(self._models)) if name is None else name)
        if versions is None:
            raise UnknownModel(f"there is no model {name!r}: there are {', '.join(self._models)}")
        if version is None:
            return next(reversed(versions.values()))
        if version not in versions:
            raise UnknownModel(f"model {name!r} has no version {version!r}: it has {', '.join(versions)}")
        return versions[version]

    def is_warm(self, name: str, version: str) -> bool:
        """Whether this version is there and warm."""
        model = self._models.get(name, {}).get(version)
        return model is not None and model.engine.ready

    def names(self) -> list[str]:
        """Every name, the first first."""
        return list(self._models)

    def versions(self, name: str) -> list[Model]:
        """Every version of a name, the current one last."""
        return list(self._models[name].values())

    def all(self) -> list[Model]:
        """Every version of every model, the current one of each name first."""
        return [model for versions in self._models.values() for model in reversed(versions.values())]
