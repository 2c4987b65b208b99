"""One network to one ONNX file: dynamic batch, Dirac weights and batch norm folded, weights inside the file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.models.dirac import fold_dirac

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
    plain = fold_dirac(net).cpu().float().eval()
    folded = fold_batch_norm(plain.to(memory_format=torch.contiguous_format))
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


def fold_batch_norm(net: nn.Module) -> fx.GraphModule:
    """Put each batch norm that follows a convolution, and nothing else, into its weights and bias.

    Args:
        net: in eval mode.
    """
    traced = fx.symbolic_trace(net)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and isinstance(modules.get(str(node.target)), nn.BatchNorm2d)):
            continue
        convolution = modules.get(str(before.target))
        if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            fused = fuse_conv_bn_eval(convolution, modules[str(node.target)])
            modules[str(before.target)] = fused
            traced.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


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
