"""One network to one ONNX file: dynamic batch, batch norm folded, weights inside the file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

INPUT, OUTPUT = "images", "logits"
OPSET = 18


def to_onnx(net: nn.Module, size: int) -> bytes:
    """Export a classifier.

    Args:
        net: images (B, 3, size, size) -> logits (B, K), float32.
        size: pixels a side.

    Returns:
        The file's bytes, checked by ONNX's own checker.
    """
    folded = fuse(copy.deepcopy(net).cpu().float().eval().to(memory_format=torch.contiguous_format))
    example = torch.zeros(2, 3, size, size)
    with _quiet():
        program = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None, "the exporter gives a program unless it is told to write a file"
    model = _plain(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes on where each node came from: they hold file paths, and outweigh the weights."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    model.producer_name = "rescade"
    model.doc_string = ""
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
