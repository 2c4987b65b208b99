"""Teachers that a run does not train: from another run, which must have seen the same data, or a weight file."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cascade.errors import RecipeError
from tests.tiny_run import DOCUMENT, tiny_recipe
from tests.training.folders import image_folder
from tests.training.networks import same, state
from tests.training.quick_runs import EPOCH, SMALL, VANILLA, quick
from training import models
from training.reuse import step_key
from training.run import Run

pytestmark = pytest.mark.train

ALONE = {"model": SMALL, "method": VANILLA}


def test_a_teacher_can_be_taken_from_another_run(tiny_run: Run, tmp_path: Path) -> None:
    run = quick(tmp_path, teacher={"run": str(tiny_run.folder)})
    assert run.network("teacher")[0] == tiny_run.network("teacher")[0]
    assert same(state(run.network("teacher")[1]), state(tiny_run.network("teacher")[1]))


def test_a_teacher_of_other_data_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"trained on other data: data\.dv_fraction, data\.split_seed differ"):
        quick(
            tmp_path,
            data={**DOCUMENT["data"], "split_seed": 1, "dv_fraction": 0.3},
            teacher={"run": str(tiny_run.folder)},
        )


@pytest.mark.parametrize("written", ["~/images", "{home}/more/../images", "{home}/link"])
def test_data_are_the_same_however_their_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    image_folder(tmp_path / "images", (20, 20, 20))
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "more").mkdir()
    data, schedule = {**DOCUMENT["data"], "name": f"imagefolder:{tmp_path / 'images'}"}, {**EPOCH, "batch_size": 16}
    donor = quick(tmp_path / "donor", data=data, schedule=schedule, teacher=None, student=ALONE)
    again = {**data, "name": f"imagefolder:{written.format(home=tmp_path)}"}
    run = quick(tmp_path / "run", data=again, schedule=schedule, teacher={"run": str(donor.folder), "step": "student"})
    assert same(state(run.network("teacher")[1]), state(donor.network("student")[1]))


def test_data_of_another_folder_are_others(tmp_path: Path) -> None:
    data, schedule = DOCUMENT["data"], {**EPOCH, "batch_size": 16}
    for name in ("images", "others"):
        image_folder(tmp_path / name, (20, 20, 20))
    ours, theirs = ({**data, "name": f"imagefolder:{tmp_path / name}"} for name in ("images", "others"))
    donor = quick(tmp_path / "donor", data=theirs, schedule=schedule, teacher=None, student=ALONE)
    with pytest.raises(
        RecipeError, match=r"trained on other data: data\.name differ; train the teacher in this recipe"
    ):
        quick(tmp_path / "run", data=ours, schedule=schedule, teacher={"run": str(donor.folder), "step": "student"})


def test_a_step_is_trained_again_after_the_images_in_its_folder_changed(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", (20, 20, 20))
    data = {**DOCUMENT["data"], "name": f"imagefolder:{tmp_path / 'images'}"}
    changes = {"data": data, "schedule": {**EPOCH, "batch_size": 16}, "teacher": None, "student": ALONE}
    first = quick(tmp_path / "first", **changes)
    same_images = quick(tmp_path / "again", reuse=(first.folder,), **changes)
    image_folder(tmp_path / "images", (20, 20, 20), seed=3, side=9)
    others = quick(tmp_path / "others", reuse=(first.folder,), **changes)
    assert same_images.figures("student") == first.figures("student")
    assert not (same_images.folder / "metrics.jsonl").exists()
    assert others.figures("student")["key"] != first.figures("student")["key"]
    assert not same(state(others.network("student")[1]), state(first.network("student")[1]))


def test_the_key_of_a_step_on_a_data_set_with_a_name_is_what_it_was() -> None:
    assert step_key(tiny_recipe(), "student", {"model": "x"}, ["a"]) == "ffac7f9e4314b94f"


def test_a_run_without_a_teacher_gives_none(tmp_path: Path) -> None:
    quick(tmp_path / "alone", teacher=None, student={"model": SMALL, "method": VANILLA})
    with pytest.raises(RecipeError, match="has no finished teacher"):
        quick(tmp_path / "next", teacher={"run": str(tmp_path / "alone")})


def test_a_teacher_from_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        quick(tmp_path / "run", teacher={"run": str(tmp_path / "nowhere")})


def some_network(classes: int = 10) -> nn.Module:
    torch.manual_seed(7)
    return models.build(SMALL, classes)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_teacher_can_be_loaded_from_a_weight_file(tmp_path: Path, kind: str) -> None:
    weights = tmp_path / f"weights.{kind}"
    net = some_network()
    save_file(net.state_dict(), weights) if kind == "safetensors" else torch.save(net.state_dict(), weights)
    run = quick(tmp_path / "run", teacher={"model": SMALL, "weights": str(weights)})
    assert same(state(run.network("teacher")[1]), state(net))


def test_a_torchvision_network_can_be_the_teacher(tmp_path: Path) -> None:
    name = "torchvision:squeezenet1_1"
    data = {**DOCUMENT["data"], "size": 32, "dv_fraction": 0.9}
    torch.save(models.build(name, 10).state_dict(), tmp_path / "weights.pth")
    run = quick(
        tmp_path / "run",
        data=data,
        schedule={**EPOCH, "batch_size": 64},
        teacher={"model": name, "weights": str(tmp_path / "weights.pth")},
    )
    assert run.network("teacher")[0] == name


class Code:
    """What somebody might hide in a weight file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_weight_file_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.pth"
    torch.save({"w": Code()}, weights) if kind == "torch" else weights.write_bytes(pickle.dumps(Code()))
    with pytest.raises(RecipeError, match="cannot read the weights"):
        quick(tmp_path / "run", teacher={"model": SMALL, "weights": str(weights)})
    assert not (tmp_path / "touched-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.zeros(2)}, "are not of this network"),
        (torch.zeros(2), "are not of this network"),
        (some_network(7).state_dict(), "are not of this network"),
        (None, "cannot read the weights"),
    ],
    ids=["another network", "a tensor", "other classes", "no file"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RecipeError, match=message):
        quick(tmp_path / "run", teacher={"model": SMALL, "weights": str(tmp_path / "weights.pth")})


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(RecipeError, match="cannot read the weights"):
        quick(tmp_path / "run", teacher={"model": SMALL, "weights": str(tmp_path / "weights.safetensors")})


def test_a_teacher_that_knows_other_classes_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", (20, 20, 20))
    data = {**DOCUMENT["data"], "name": f"imagefolder:{tmp_path / 'images'}"}
    donor = quick(tmp_path / "donor", data=data, schedule={**EPOCH, "batch_size": 16})
    shutil.copytree(tmp_path / "images", tmp_path / "more")
    image_folder(tmp_path / "images", (20,), names=("dog",))
    with pytest.raises(RecipeError, match="knows 3 classes, the data has 4"):
        quick(tmp_path / "run", data=data, schedule={**EPOCH, "batch_size": 16}, teacher={"run": str(donor.folder)})
