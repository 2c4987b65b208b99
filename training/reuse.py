"""Steps of other runs that need not be trained again, since they and all before them are the same.

A step's key is a hash of all that its weights depend on: seed, data, network, method, schedule, and the keys of the
steps that it learned from; a network that a method reads from a file counts by its weights. It is not the run's id, so
recipes that differ in a student share their teacher, and a teacher of two rounds of pruning is found in a run of seven.
Images in a folder of one's own count by their names and sizes, so that steps are trained again when the folder changes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training import checkpoint
from training.methods.base import find
from training.recipe import Recipe
from training.run import Run


def step_key(
    recipe: Recipe, step: str, settings: dict[str, Any], inputs: Sequence[str], files: str | None = None
) -> str:
    """The key of a step, 16 hex digits.

    Args:
        recipe: of the run; its seed and data count, what it runs on does not.
        step: its name, which its random numbers depend on.
        settings: model, method, whole schedule, and whatever else is particular to it.
        inputs: keys of the steps that it learns from or begins with, in order.
        files: what `files_digest` gives for the data.
    """
    data = recipe.data.model_dump(mode="json", exclude={"root"})
    data |= {} if files is None else {"files": files}
    parts = {"seed": recipe.seed, "data": data, "step": step, "settings": settings, "inputs": list(inputs)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def by_content(method: dict[str, Any]) -> dict[str, Any]:
    """A method's settings with a digest in place of each file that they name.

    Args:
        method: its name and settings.

    Raises:
        RecipeError: a file holds no network.
    """
    _, config = find(method)
    inner = {key: by_content(method[key]) for key in config.INNER if key in method}
    named = {key: value for key in config.NETWORKS if (value := getattr(config, key)) is not None}
    found = {key: checkpoint.load_network(Path(value).expanduser())[1] for key, value in named.items()}
    return {**method, **inner, **{key: checkpoint.digest(net) for key, net in found.items()}}


def taken(run: Run, step: str, key: str, others: Sequence[Run]) -> Run | None:
    """Copy a finished step of the same key from the first of other runs that has it.

    Returns:
        The run it was in; None if none of them has it.
    """
    for other in others:
        if other.is_done(step) and other.figures(step).get("key") == key:
            there, here = other.step(step), run.step(step)
            here.mkdir(parents=True, exist_ok=True)
            for path in sorted(there.glob("*.safetensors")):
                shutil.copyfile(path, here / path.name)
            checkpoint.write_json(here / "step.json", other.figures(step))
            return other
    return None
