"""What `rescade export` starts from: a finished run, or a bundle and the recipe that says which images are whose."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cascade.bundle import MANIFEST, Bundle
from cascade.errors import RecipeError
from cascade.files import Quantiser
from export.derive import source_of
from export.splits import Splits, load
from training import recipe as recipes


@dataclass(frozen=True)
class Source:
    """A float32 bundle, and its images."""

    bundle: Bundle
    splits: Splits


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle rather than a run."""
    return (folder / MANIFEST).is_file()


def opened(folder: Path, recipe: Path | None, settings: tuple[str, ...] = (), *, quiet: bool = False) -> Source:
    """Read a bundle, or export a run to one that does not stay; and decode the images.

    Args:
        folder: of the bundle or the run.
        recipe: of the bundle; a run has its own.
        settings: put over the recipe, like `data.name=imagefolder:PATH`.
        quiet: show no progress.

    Raises:
        RecipeError: a bundle without a recipe, a run with one, or a data set that is not there.
        BundleError: the bundle is not whole or not in float32.
    """
    images = Quantiser().images
    if is_bundle(folder):
        if recipe is None:
            raise RecipeError(f"{folder} is a bundle: name the recipe it came from, with --recipe")
        read = source_of(folder)
        return Source(read, load(recipes.load(recipe, settings).data, images, quiet=quiet))
    if recipe is not None or settings:
        raise RecipeError(f"{folder} is a run, which has its own recipe: leave out --recipe and --set")
    from export.build import build
    from training.run import open_run

    run = open_run(folder)
    with tempfile.TemporaryDirectory() as beside:
        build(run, Path(beside) / "bundle", takes="float32", quiet=quiet)
        read = source_of(Path(beside) / "bundle")
    return Source(read, load(run.recipe.data, images, quiet=quiet))
