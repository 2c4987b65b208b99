"""ONNX files run on the CPU, one sample or many at a time: what export measures with, and `verify` too."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError
from cascade.feeds import feeds
from cascade.files import Input
from cascade.manifest import Preprocess
from cascade.pixels import Pixels

Array = NDArray[np.float32]

# Where a graph's weights may lie outside its file; by default that is the current folder, which no digest covers.
EXTERNAL_WEIGHTS = "session.model_external_initializers_file_folder_path"


class Session:
    """One stage in onnxruntime, one thread, CPU.

    Args:
        model: the ONNX file's bytes.
        where: field of the bundle, for messages.
        rule: how pixels are normalised, should any be run on a graph that takes floats.

    Raises:
        BundleError: onnxruntime cannot load it, or it does not have one input and one output.

    Attributes:
        input, output: name, shape and type in the graph.
        takes: the input, as a manifest would have it.
    """

    def __init__(self, model: bytes, where: str, rule: Preprocess | None = None) -> None:
        self.session = opened(model, where)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise BundleError(where, f"has {len(inputs)} inputs and {len(outputs)} outputs; a stage has one of each")
        self.input, self.output = inputs[0], outputs[0]
        self.takes = _takes(self.session, where)
        self._where, self._rule = where, rule

    def run(self, images: Array | Pixels) -> Array:
        """Logits (B, K) of one batch (B, 3, H, W), normalised as float32 or pixels as uint8, whatever the graph takes.

        Raises:
            BundleError: the graph fails on it.
        """
        try:
            given = feeds(images, self.takes, self._rule)
            logits: Array = self.session.run([self.output.name], given)[0]
        except Exception as error:  # as above
            message = f"onnxruntime cannot run it on a batch of {len(images)}: {error}"
            raise BundleError(self._where, message) from error
        return logits

    def in_batches(self, images: Array | Pixels, size: int) -> Array:
        """Logits of many samples, `size` at a time."""
        parts = [self.run(images[start : start + size]) for start in range(0, len(images), size)]
        return np.concatenate(parts)


def _takes(session: ort.InferenceSession, where: str) -> Input:
    [images], others = session.get_inputs(), [each.name for each in session.get_overridable_initializers()]
    pixels = images.type == "tensor(uint8)"
    if pixels and len(others) > 1:
        raise BundleError(
            where, f"takes pixels, and has {len(others)} inputs beside them; such a stage has one at most"
        )
    return Input.model_construct(
        name=images.name,
        shape=tuple(size if isinstance(size, int) else None for size in images.shape),
        dtype="uint8" if pixels else "float32",
        shift=others[0] if pixels and others else None,
    )


def opened(model: bytes, where: str) -> ort.InferenceSession:
    """An ONNX file in onnxruntime: one thread, CPU.

    Args:
        model: the file's bytes.
        where: field of the bundle, for messages.

    Raises:
        BundleError: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXTERNAL_WEIGHTS, os.devnull)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception types share no public base
        raise BundleError(where, f"onnxruntime cannot load it: {error}") from error


def sessions(models: Sequence[bytes], rule: Preprocess | None = None) -> list[Session]:
    """One session a stage; `rule` as above."""
    return [Session(model, f"stages[{number}].file", rule) for number, model in enumerate(models)]
