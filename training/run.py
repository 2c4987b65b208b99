"""A run folder, and what is in it.

recipe.json              the resolved recipe, and its hash
metrics.jsonl            a line an epoch
tensorboard/             the same for TensorBoard
steps/teacher/           network.safetensors and step.json once it is done; checkpoint.pt until then
steps/student/           also head_NAME.safetensors for each head that a method trains beside the one that is served;
                         init/checkpoint.pt, where the method has a phase of that name, until the step is done
steps/student/images.png  where the method made its own images: some of the last
steps/residual1/ ...
steps/teacher_round1/ ... also masks.safetensors, where the teacher is pruned; the last of them teaches
steps/student_slim/      the student without the channels that were cut; residual1_slim/ ... likewise
logits/dv.npz, test.npz  per-sample logits of every network, written by `evaluate`
evaluation.json          figures, written by `evaluate`
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cascade.errors import RecipeError
from training import checkpoint, models
from training.pruning.magnitude import Masks
from training.recipe import Recipe, parse

HEAD = "head_"


@dataclass(frozen=True)
class Run:
    """A run folder and the recipe it belongs to."""

    folder: Path
    recipe: Recipe

    def step(self, name: str) -> Path:
        """The folder of one step."""
        return self.folder / "steps" / name

    def is_done(self, name: str) -> bool:
        """Whether the step's network is finished."""
        return (self.step(name) / "step.json").exists()

    def teacher(self) -> str | None:
        """The step whose network teaches; None if there is none, or not yet."""
        path = self.folder / "cascade.json"
        named: str | None = checkpoint.read_json(path).get("teacher") if path.exists() else None
        return named or ("teacher" if self.is_done("teacher") else None)

    def teaching(self, step: str | None) -> str:
        """The step whose network teaches another run: the one that it names, or the one that taught here.

        Raises:
            RecipeError: there is none, or it has not finished.
        """
        found = step or self.teacher()
        if found is None or not self.is_done(found):
            raise RecipeError(f"teacher.run {self.folder} has no finished {found or 'teacher'}")
        return found

    def masks(self, name: str) -> Masks | None:
        """Which weights pruning left of a step's network; None where it was not pruned."""
        path = self.step(name) / "masks.safetensors"
        return Masks.load(path) if path.exists() else None

    def figures(self, name: str) -> dict[str, Any]:
        """What was noted when the step ended."""
        return checkpoint.read_json(self.step(name) / "step.json")

    def network(self, name: str) -> tuple[str, nn.Module]:
        """A finished step's network and its name, in eval mode."""
        return checkpoint.load_network(self.step(name) / "network.safetensors")

    def heads(self, name: str) -> dict[str, nn.Module]:
        """What a step's method trained beside its network, by name, in eval mode; older runs have not kept it."""
        paths = sorted(self.step(name).glob(f"{HEAD}*.safetensors"))
        return {path.stem.removeprefix(HEAD): checkpoint.load_network(path)[1] for path in paths}

    def finish(
        self,
        name: str,
        net: nn.Module,
        model: str,
        classes: int,
        figures: dict[str, Any],
        size: int = models.SIZE,
        masks: Masks | None = None,
        heads: Mapping[str, tuple[str, nn.Module]] | None = None,
    ) -> None:
        """Store a step's network, masks and other heads, each with its name, then its figures, which make it done."""
        if masks is not None:
            masks.save(self.step(name) / "masks.safetensors")
        for head, (built, other) in (heads or {}).items():
            checkpoint.save_network(self.step(name) / f"{HEAD}{head}.safetensors", other, built, classes, size)
        checkpoint.save_network(self.step(name) / "network.safetensors", net, model, classes, size)
        checkpoint.write_json(self.step(name) / "step.json", figures)
        (self.step(name) / "checkpoint.pt").unlink(missing_ok=True)
        for phase in self.step(name).glob("*/checkpoint.pt"):
            shutil.rmtree(phase.parent)

    def stages(self) -> list[str]:
        """The names of the cascade's finished steps, in order.

        Raises:
            RecipeError: the run has not finished.
        """
        path = self.folder / "cascade.json"
        stages: list[str] | None = checkpoint.read_json(path).get("stages") if path.exists() else None
        if stages is None:
            raise RecipeError(f"the run {self.folder} has not finished: run `rescade train` on it again")
        return stages


def create(folder: Path, recipe: Recipe) -> Run:
    """Start a run in a folder, or go on with it. One that had trained nothing yet gives way to another recipe's.

    Raises:
        RecipeError: the folder holds another recipe's run, or something else, or cannot be written to.
    """
    path = folder / "recipe.json"
    if path.exists():
        document = checkpoint.read_json(path)
        there, begun = document.get("run_id"), "recipe" not in document or (folder / "steps").exists()
        if there != recipe.run_id() and begun:
            raise RecipeError(f"{folder} holds a run of another recipe ({there}): name another --out, or remove it")
    elif folder.exists() and any(entry.name != ".recipe.json.new" for entry in folder.iterdir()):
        raise RecipeError(f"{folder} is not empty and is no run: name another --out")
    try:
        checkpoint.write_json(path, {"run_id": recipe.run_id(), "recipe": recipe.model_dump(mode="json")})
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error}") from error
    return Run(folder, recipe)


def open_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RecipeError: it is none.
    """
    if not (folder / "recipe.json").exists():
        raise RecipeError(f"{folder} is no run, it has no recipe.json: name a folder that `rescade train --out` made")
    document = checkpoint.read_json(folder / "recipe.json")
    return Run(folder, parse(document.get("recipe", {}), str(folder / "recipe.json")))
