"""Files of a run: whole or absent, readable or refused, and never code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from cascade.errors import RecipeError
from tests.training.networks import same, state
from training import models
from training.checkpoint import (
    load_checkpoint,
    load_network,
    read_json,
    save_checkpoint,
    save_network,
    write_atomic,
    write_json,
)

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
SMALL = "resnet8_0.25_a"


def network() -> torch.nn.Module:
    """One whose running statistics have moved."""
    torch.manual_seed(0)
    net = models.build(SMALL, 10)
    net(torch.randn(8, 3, 8, 8))
    return net.to(memory_format=torch.channels_last)


def test_a_file_is_written_whole_with_its_folders_and_without_a_trace(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": [1, None, "ü"]})
    assert read_json(tmp_path / "file.json") == {"a": [1, None, "ü"]}


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"cannot read .*file\.json"):
        read_json(tmp_path / "file.json")


def test_a_network_comes_back_bit_for_bit_in_eval_mode(tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", network(), SMALL, 10)
    name, net = load_network(tmp_path / "net.safetensors")
    assert name == SMALL
    assert not net.training
    assert same(state(net), state(network()))


def test_a_network_comes_back_for_the_size_of_images_it_was_made_for(tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", models.build("vgg16_tiny", 10, 64), "vgg16_tiny", 10, 64)
    name, net = load_network(tmp_path / "net.safetensors")
    assert name == "vgg16_tiny"
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_the_same_network_is_the_same_file(tmp_path: Path) -> None:
    files = set()
    for number in range(10):
        save_network(tmp_path / f"{number}", network(), SMALL, 10)
        files.add((tmp_path / f"{number}").read_bytes())
    assert len(files) == 1


def test_other_programs_can_read_a_network(tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", network(), SMALL, 10)
    tensors = load((tmp_path / "net.safetensors").read_bytes())
    assert all(torch.equal(value, tensors[key]) for key, value in network().state_dict().items())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say which network"),
        ({"model": SMALL}, "does not say which network"),
        ({"model": SMALL, "num_classes": "ten"}, "does not say which network"),
        ({"model": "lenet", "num_classes": "10"}, "no network is called 'lenet'"),
        ({"model": SMALL, "num_classes": "7"}, "are not of this network"),
        ({"model": "resnet8_0.5_a", "num_classes": "10"}, "are not of this network"),
    ],
)
def test_a_network_file_that_says_too_little_or_lies_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    save_file(network().to(memory_format=torch.contiguous_format).state_dict(), tmp_path / "net.safetensors", metadata)
    with pytest.raises(RecipeError, match=message):
        load_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_network_file_is_refused(tmp_path: Path, share: float) -> None:
    save_network(tmp_path / "whole", network(), SMALL, 10)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(share * len(data))])
    with pytest.raises(RecipeError, match="cannot read the network"):
        load_network(tmp_path / "cut")


def test_a_network_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the network"):
        load_network(tmp_path / "nowhere")


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "steps" / "checkpoint.pt", {"epoch": 3, "sums": {"ce": 0.1}, "w": torch.ones(2)})
    state = load_checkpoint(tmp_path / "steps" / "checkpoint.pt", CPU)
    assert state is not None
    assert (state["epoch"], state["sums"]) == (3, {"ce": 0.1})
    assert torch.equal(state["w"], torch.ones(2))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt", CPU) is None


@pytest.mark.parametrize("content", [{"format": 2}, {"epoch": 3}, torch.ones(2), [1]])
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(RecipeError, match=r"has checkpoint format .*: remove it"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)


class Code:
    """What somebody might hide in a checkpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("kind", ["torch", "pickle", "text"])
def test_a_checkpoint_that_is_code_or_nothing_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, "w": Code()}, path)
    if kind != "torch":
        path.write_bytes(pickle.dumps(Code()) if kind == "pickle" else b"hello")
    with pytest.raises(RecipeError, match="is not a checkpoint of this program"):
        load_checkpoint(path, CPU)
    assert not (tmp_path / "touched-by-a-pickle").exists()


@pytest.mark.parametrize("kept", ["no JSON", '{"stem.1": "all"}', "[1]", '{"nowhere": [0]}'])
def test_a_file_that_does_not_say_which_channels_were_kept_is_refused(tmp_path: Path, kept: str) -> None:
    net = models.build("resnet8_0.125_a", 4)
    about = {"model": "resnet8_0.125_a", "num_classes": "4", "size": "8", "kept": kept}
    save_file(net.state_dict(), tmp_path / "network.safetensors", about)
    with pytest.raises(RecipeError, match=r"which channels were kept|no such batch norm"):
        load_network(tmp_path / "network.safetensors")
