"""Golden samples are made at export, and added to bundles that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from cascade import bundle
from cascade.errors import BundleError
from cascade.golden import unpack
from export.build import Built
from export.golden import add, from_recipe
from export.verify import verify
from tests.builders import write_tiny_bundle
from tests.tiny_run import document
from training.data import load
from training.run import Run

pytestmark = pytest.mark.train


def test_an_export_carries_golden_samples_of_dv_that_leave_at_every_stage(
    tiny_run: Run, built: Built, folder: Path
) -> None:
    read = bundle.read(folder)
    assert read.golden is not None
    golden = unpack(read.golden, read.manifest)
    assert golden.extremes is not None
    dv = load(tiny_run.recipe.data, quiet=True).dv
    candidates = {image.tobytes() for image in dv.images[dv.index].numpy()}
    assert {image.tobytes() for image in golden.images} <= candidates
    assert set(golden.exits.tolist()) == {0, 1, 2}
    assert 8 <= len(golden.images) <= 16


def test_golden_samples_are_added_to_a_bundle_that_has_none(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    manifest = add(tmp_path / "bundle", images)
    found = verify(tmp_path / "bundle")
    assert found.manifest == manifest
    assert found.golden is not None
    assert manifest.golden is not None
    assert manifest.golden.samples == 12


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe that the small run was made with."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document()))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def copy(built: Built, folder: Path, tmp_path: Path) -> Path:
    """The small run's bundle, without golden samples."""
    read = bundle.read(folder)
    manifest = read.manifest.model_copy(update={"golden": None})
    bundle.write(tmp_path / "copy", manifest, read.files())
    return tmp_path / "copy"


def test_a_recipe_draws_the_dv_that_the_bundle_speaks_of(copy: Path, recipe: Path, folder: Path) -> None:
    from_recipe(copy, recipe, quiet=True)
    assert bundle.read(copy) == bundle.read(folder)


def test_another_dv_than_the_bundles_is_refused(copy: Path, recipe: Path) -> None:
    with pytest.raises(BundleError, match="draws a D_v with fingerprint") as caught:
        from_recipe(copy, recipe, ("data.dv_fraction=0.3",), quiet=True)
    assert caught.value.field == "exit.rule.fingerprint"


def test_images_that_are_prepared_otherwise_are_refused(copy: Path, recipe: Path) -> None:
    with pytest.raises(BundleError, match="prepares images by") as caught:
        from_recipe(copy, recipe, ("data.mean=[0.1, 0.2, 0.3]",), quiet=True)
    assert caught.value.field == "preprocess"
