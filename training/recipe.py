"""A recipe: YAML in, a checked and fully resolved description of a run out.

The run id is a hash of the resolved recipe, so that a changed default is a new run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from cascade.errors import RecipeError
from cascade.fields import Name
from training.document import by_one_name, put, read
from training.published import Published, forget_row, take_row
from training.reasons import reasons
from training.settings import (
    DESIGNED,
    DataConfig,
    ExitConfig,
    ExportConfig,
    Frozen,
    NetworkConfig,
    ResidualConfig,
    Runtime,
    Schedule,
    TeacherConfig,
)


class Recipe(Frozen):
    """A whole run: data, teacher, first student, res-students, exit rule, bundle.

    `teachers` are for methods that learn from several; a recipe has those or one `teacher`. `published` is what papers
    have reached with it. A file may say `stage0` for `student`.
    """

    name: Name
    seed: int = 0
    data: DataConfig
    runtime: Runtime = Runtime()
    schedule: Schedule = Schedule()
    teacher: TeacherConfig | None = None
    teachers: tuple[TeacherConfig, ...] = ()
    student: NetworkConfig
    residual: ResidualConfig | None = None
    exit: ExitConfig = ExitConfig()
    export: ExportConfig | None = None
    published: Published | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise ValueError("there are both a teacher and teachers: give one of them")
        if any(teacher.prune for teacher in self.teachers):
            raise ValueError(
                "teachers are not pruned here: prune each in a run of its own, and take it by teachers.run"
            )
        if self.residual is not None and self.teachers:
            raise ValueError(
                f"res-students learn what the student lacks of one teacher, and here are {len(self.teachers)}, which "
                "is not supported: leave residual out, or give one teacher and a method for one, such as kd"
            )
        if self.residual is not None and self.teacher is None:
            raise ValueError("res-students learn what the student lacks of a teacher: give a teacher")
        if self.exit.reference == "T" and self.exit.threshold is None and self.teacher is None:
            raise ValueError("exit.reference is T, and there is no teacher: use S_n, or give a threshold")
        if self.student.model == DESIGNED and (self.teacher is None or not (self.teacher.prune or self.teacher.run)):
            raise ValueError(
                "a designed student follows what pruning left of a teacher: give teacher.prune, or a model"
            )
        for name, part in self.trained().items():
            try:
                schedule = self.schedule_for(part)
            except ValidationError as error:
                raise ValueError(f"{name}.schedule.{reasons(error, Schedule)}") from None
            if schedule.select != "last" and not self.data.dv_exclude:
                raise ValueError(f"{name}.schedule.select compares epochs on D_v: keep that apart by data.dv_exclude")
        return self

    def trained(self) -> dict[str, dict[str, Any]]:
        """The schedule settings of all that is trained, by where they are in the recipe."""
        teacher, student, residual = self.teacher, self.student, self.residual
        parts = {
            **self.teachers_by_step(),
            "teacher.prune": None if teacher is None else teacher.prune,
            "student": student,
            "student.slim": student.slim,
            "residual": residual,
            "residual.slim": None if residual is None else residual.slim,
        }
        return {name: part.schedule for name, part in parts.items() if part is not None}

    @model_validator(mode="after")
    def _starts_fit(self) -> Self:
        if self.residual is None or self.residual.start == "fresh":
            return self
        if self.student.model == DESIGNED or self.student.slim is not None or self.residual.slim is not None:
            raise ValueError(
                "residual.start 'previous' hands weights on, and what was cut has none for a whole network: say 'fresh'"
            )
        names = {self.student.model, *self.residual.models}
        if len(names) > 1 or any(name.startswith("torchvision:") for name in names):
            raise ValueError(
                "residual.start 'previous' hands weights on from stage to stage, so student and res-students must all "
                f"be the same network of ours, not {', '.join(sorted(names))}: name one, or say 'fresh'"
            )
        return self

    @model_validator(mode="after")
    def _pixels_fit(self) -> Self:
        if self.export is not None and self.export.pixels and self.data.resize != "stretch":
            raise ValueError(
                f"export.pixels brings images to size in the graph, which can only stretch them, and data.resize is "
                f"{self.data.resize!r}: leave export.pixels out"
            )
        return self

    @model_validator(mode="after")
    def _precisions_fit(self) -> Self:
        count = 1 if self.export is None else len(self.export.precision.split(","))
        stop = None if self.residual is None else self.residual.stop
        if count > 1 and stop is not None and stop.energy is not None:
            raise ValueError("export.precision names one a stage, and residual.stop.energy leaves their number open")
        stages = 1 if stop is None else 1 + (stop.count or 0)
        if count not in (1, stages):
            raise ValueError(f"export.precision names {count} precisions for {stages} stages: name one, or each")
        return self

    def teachers_by_step(self) -> dict[str, TeacherConfig]:
        """Each teacher under the name of its step: `teacher`, or `teacher1`, `teacher2`, ... of several."""
        if self.teacher is not None:
            return {"teacher": self.teacher}
        return {f"teacher{number}": config for number, config in enumerate(self.teachers, 1)}

    def schedule_for(self, overrides: dict[str, Any]) -> Schedule:
        """The recipe's schedule with a network's own settings over it."""
        return Schedule.model_validate({**self.schedule.model_dump(), **overrides})

    def scaled(self, factor: float) -> Self:
        """The same recipe with every network's epochs multiplied, never below one; schedules are shares of them.

        So is what else a method counts in epochs.

        Raises:
            RecipeError: the factor is not in (0, 1000], or a method is none.
        """
        from training.methods.base import stretched  # needs torch, which reading a recipe does not

        if not 0 < factor <= 1000:
            raise RecipeError(f"epochs cannot be multiplied by {factor}: take a factor over 0, and 1000 at most")

        def scaled(schedule: dict[str, Any]) -> dict[str, Any]:
            epochs = self.schedule_for(schedule).epochs
            return {**schedule, "epochs": max(1, round(factor * epochs))}

        def inside(part: Frozen) -> Frozen:
            changes: dict[str, Any] = {name: inside(inner) for name, inner in part if isinstance(inner, Frozen)}
            if "epochs" in (own := getattr(part, "schedule", {})):
                changes["schedule"] = scaled(own)
            if (method := getattr(part, "method", None)) is not None:
                changes["method"] = stretched(method, factor)
            return part.model_copy(update=changes)

        if factor == 1:
            return self
        parts = {"teacher": self.teacher, "student": self.student, "residual": self.residual}
        changes: dict[str, Any] = {name: inside(part) for name, part in parts.items() if part is not None}
        changes["teachers"] = tuple(inside(teacher) for teacher in self.teachers)
        if self.published is not None:
            changes["published"] = self.published.model_copy(update={"row": None})
        return self.model_copy(update={**changes, "schedule": self.schedule.model_copy(update=scaled({}))})

    def run_id(self) -> str:
        """sha256 of the resolved recipe, 16 hex digits; not of what it runs on, is exported as, or has published."""
        resolved = json.dumps(self.model_dump(mode="json", exclude={"runtime", "export", "published"}), sort_keys=True)
        return hashlib.sha256(resolved.encode()).hexdigest()[:16]


def load(path: Path, settings: tuple[str, ...] = (), row: str | None = None) -> Recipe:
    """Read a recipe, make it the one of a published row, and put `key=value` settings over it.

    Args:
        path: YAML file.
        settings: dotted keys and YAML values, e.g. `schedule.epochs=3`.
        row: name of one that the recipe lists; default the recipe as it is written.

    Raises:
        RecipeError: unreadable, not YAML, an unknown key, or a value out of range; says which.
    """
    document = read(path)
    if row is not None:
        take_row(document, row, str(path))
    forget_row(document, [put(document, setting) for setting in settings])
    return parse(document, str(path))


def parse(document: dict[str, Any], source: str) -> Recipe:
    """Check a recipe given as plain values.

    Raises:
        RecipeError: names every key that is wrong.
    """
    document = by_one_name(document, source)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"{source}: {reasons(error, Recipe)}") from error
