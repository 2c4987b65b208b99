"""Files of a run: checkpoints that a killed run goes on from, and finished networks.

Everything is written beside its place and renamed, so that a file is whole or absent. Nothing here unpickles code:
checkpoints are read with `weights_only=True`, networks are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.pruning.cut import Kept, cut, kept_of

FORMAT = 1


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RecipeError: the file is missing, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"cannot read {path}: it holds no JSON object")
    return document


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    torch.save({"format": FORMAT, **state}, fresh)
    fresh.replace(path)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote; None if there is nothing.

    Raises:
        RecipeError: the file is of another format, or no checkpoint at all.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever unpickling raised
        raise RecipeError(f"{path} is not a checkpoint of this program: remove it to start the step anew") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise RecipeError(f"{path} has checkpoint format {found!r}, not {FORMAT}: remove it to start the step anew")
    return state


def save_network(path: Path, net: nn.Module, name: str, num_classes: int, size: int = models.SIZE) -> None:
    """Write a network's weights, and what it was built from: name, number of classes, pixels a side, channels kept."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    about = {"model": name, "num_classes": str(num_classes), "size": str(size)}
    if (kept := kept_of(net)) is not None:
        about["kept"] = json.dumps(kept, separators=(",", ":"), sort_keys=True)
    write_atomic(path, _in_order(save(tensors, about)))


def digest(net: nn.Module) -> str:
    """What tells a network's weights from others: 16 hex digits of a sha256."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()[:16]


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted; the library writes it in any order, and equal runs would differ."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    return data[:8] + text.ljust(size) + data[8 + size :]


def load_network(path: Path) -> tuple[str, nn.Module]:
    """Build and fill a network from a file of `save_network`; in eval mode.

    Returns:
        Its name and the network.

    Raises:
        RecipeError: missing, damaged, or not of this program.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"cannot read the network {path}: {error}") from error
    name, classes, size = about.get("model"), about.get("num_classes", ""), about.get("size", str(models.SIZE))
    if name is None or not classes.isdecimal() or not size.isdecimal():
        raise RecipeError(f"{path} does not say which network it holds; give the model's name in the recipe")
    net = models.build(name, int(classes), int(size))
    if "kept" in about:
        cut(net, _kept(about["kept"], path), int(size))
    fill(net, tensors, path)
    return name, net.eval()


def _kept(text: str, path: Path) -> Kept:
    """The channels that a file says were kept.

    Raises:
        RecipeError: it does not say so in a way that can be read.
    """
    try:
        return TypeAdapter(Kept).validate_json(text, strict=True)
    except ValidationError as error:
        raise RecipeError(f"{path} does not say which channels were kept: {error}") from error


def load_weights(path: Path, name: str, num_classes: int, size: int = models.SIZE) -> nn.Module:
    """Build a network by name and fill it from somebody's weight file: safetensors, or a torch state dict.

    Raises:
        RecipeError: missing, damaged, unsafe to read, or not of this network.
    """
    net = models.build(name, num_classes, size)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever unpickling raised
        raise RecipeError(f"cannot read the weights {path}: {error}") from error
    fill(net, tensors, path)
    return net.eval()


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a state dict.

    Raises:
        RecipeError: names or shapes differ.
    """
    try:
        net.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(f"the weights in {path} are not of this network: {error}") from error
