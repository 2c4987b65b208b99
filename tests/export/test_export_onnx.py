"""One network to one ONNX file: whole, folded, for any batch, and the same numbers."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.session import Array, Session
from export.to_onnx import INPUT, OPSET, OUTPUT, to_onnx
from training import models

pytestmark = pytest.mark.train

NETWORKS = ["resnet8_0.25_a", "resnet8_0.25_b"]


def network(name: str) -> nn.Module:
    """A network whose batch norms are far from the identity."""
    torch.manual_seed(0)
    net = models.build(name, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    nn.init.uniform_(value, *((0.5, 2.0) if key in ("weight", "running_var") else (-1.0, 1.0)))
    return net.eval()


@functools.cache
def exported(name: str) -> bytes:
    return to_onnx(network(name), 16)


def proto(name: str) -> onnx.ModelProto:
    return onnx.load_model(io.BytesIO(exported(name)))


def images(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_gives_torchs_logits(name: str, count: int) -> None:
    with torch.no_grad():
        expected = network(name)(torch.from_numpy(images(count))).numpy()
    found = Session(exported(name), "stage").run(images(count))
    assert found.shape == (count, 10)
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_is_folded_away(name: str) -> None:
    kinds = {node.op_type for node in proto(name).graph.node}
    assert "Conv" in kinds
    assert not {"BatchNormalization", "Sqrt", "Div", "Sub"} & kinds


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_inside_the_file(name: str) -> None:
    initializers = proto(name).graph.initializer
    assert initializers
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT and not tensor.external_data for tensor in initializers)


def test_the_batch_is_the_only_open_dimension() -> None:
    graph = proto(NETWORKS[0]).graph
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert list(shapes) == [INPUT, OUTPUT]
    assert shapes[INPUT][1:] == [3, 16, 16]
    assert shapes[OUTPUT][1:] == [10]
    assert isinstance(shapes[INPUT][0], str)
    assert shapes[INPUT][0] == shapes[OUTPUT][0] != ""


def test_the_opset_is_the_one_that_is_stated() -> None:
    assert [(entry.domain, entry.version) for entry in proto(NETWORKS[0]).opset_import] == [("", OPSET)]


def test_nothing_of_the_machine_it_was_made_on_is_in_the_file() -> None:
    data = exported(NETWORKS[0])
    assert str(Path.home()).encode() not in data
    assert str(Path(__file__).parents[2]).encode() not in data
    assert b"site-packages" not in data


def test_the_same_network_gives_the_same_file() -> None:
    assert to_onnx(network(NETWORKS[0]), 16) == exported(NETWORKS[0])


def test_the_network_is_left_as_it_was() -> None:
    net = network(NETWORKS[0]).to(memory_format=torch.channels_last).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert to_onnx(net, 16) == exported(NETWORKS[0])
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert next(net.parameters()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_torchvision_network_can_be_exported() -> None:
    net = network("torchvision:resnet18")
    data = to_onnx(net, 32)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels)).numpy()
    assert np.abs(Session(data, "stage").in_batches(pixels, 2) - expected).max() < 1e-3
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_model(io.BytesIO(data)).graph.node}
