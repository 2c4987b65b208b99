"""What a graph takes, on graphs small enough to work out by hand.

`image` is (1, 2, 4, 4), 128 bytes. A map of three channels is (1, 3, 4, 4), 48 values, 192 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from cascade.errors import BundleError
from export.profile import Profile, profile

pytestmark = pytest.mark.train

WEIGHTS: dict[str, Any] = {
    "w0": np.ones((3, 2, 3, 3), np.float32),
    "b0": np.ones(3, np.float32),
    "w": np.ones((3, 3, 3, 3), np.float32),
    "v": np.ones((48, 5), np.float32),
}


def node(kind: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, reads.split(), makes.split(), **attributes)


def conv(reads: str, makes: str, **attributes: Any) -> NodeProto:
    return node("Conv", reads, makes, pads=[1, 1, 1, 1], **attributes)


def graph(*nodes: NodeProto, out: str = "logits", **more: Any) -> ModelProto:
    """A model of these nodes, any batch, whose constants are those of `WEIGHTS` that they read, and `more`."""
    read = {name for each in nodes for name in each.input}
    arrays = {name: array for name, array in {**WEIGHTS, **more}.items() if name in read}
    made = helper.make_graph(
        list(nodes),
        "by hand",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 2, 4, 4])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def live(found: Profile) -> list[int]:
    return [layer.live_bytes for layer in found.layers]


def live_in_place(found: Profile) -> list[int]:
    return [layer.live_in_place_bytes for layer in found.layers]


CHAIN = (
    conv("image w0 b0", "a"),
    node("Relu", "a", "b"),
    node("Flatten", "b", "c"),
    node("Gemm", "c v", "logits"),
)
RESIDUAL = (
    conv("image w0", "a"),
    node("Relu", "a", "b"),
    conv("b w", "c"),
    node("Relu", "c", "d"),
    conv("d w", "e"),
    node("Add", "e b", "logits"),
)


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    found = profile(graph(*CHAIN))
    assert live(found) == [128 + 192, 192 + 192, 192, 192 + 20]
    assert (found.peak_bytes, found.peak_in_place_bytes) == (384, 320)


def test_a_relu_in_place_takes_no_memory_of_its_own() -> None:
    assert live_in_place(profile(graph(*CHAIN))) == [128 + 192, 192, 192, 192 + 20]


def test_a_shortcut_is_held_until_it_is_added() -> None:
    found = profile(graph(*RESIDUAL))
    assert live(found) == [128 + 192, 384, 384, 576, 576, 576]
    assert live_in_place(found) == [128 + 192, 192, 384, 384, 576, 576]


def test_two_branches_of_the_image_hold_it_until_the_second_has_read_it() -> None:
    branches = (
        conv("image w0", "a"),
        node("GlobalAveragePool", "a", "p"),
        conv("image w0", "b"),
        node("Add", "p b", "logits"),
    )
    assert live(profile(graph(*branches))) == [128 + 192, 128 + 192 + 12, 128 + 12 + 192, 12 + 192 + 192]


def test_a_relu_does_not_write_over_what_is_read_later() -> None:
    preactivated = (
        conv("image w0", "a"),
        node("Relu", "a", "b"),
        conv("b w", "c"),
        node("Add", "c a", "logits"),
    )
    assert live_in_place(profile(graph(*preactivated))) == [320, 384, 576, 576]


def test_a_relu_does_not_write_over_the_callers_image() -> None:
    found = profile(graph(node("Relu", "image", "a"), conv("a w0", "logits")))
    assert live_in_place(found) == [128 + 128, 128 + 192]


def test_a_relu_does_not_write_over_a_tensor_that_a_view_of_it_is_read_of_later() -> None:
    nodes = (
        conv("image w0", "a"),
        node("Flatten", "a", "flat"),
        node("Relu", "a", "b"),
        node("Flatten", "b", "c"),
        node("Add", "c flat", "logits"),
    )
    assert live_in_place(profile(graph(*nodes))) == [320, 192, 384, 384, 576]


def test_relus_in_a_row_share_one_buffer_which_may_become_the_output() -> None:
    nodes = (conv("image w0", "a"), node("Relu", "a", "b"), node("Sigmoid", "b", "logits"))
    assert live_in_place(profile(graph(*nodes))) == [320, 192, 192]
    assert live(profile(graph(*nodes))) == [320, 384, 384]


def test_an_output_is_held_to_the_end() -> None:
    nodes = (conv("image w0", "logits"), node("Relu", "logits", "a"), conv("a w", "unread"))
    found = profile(graph(*nodes))
    assert live(found) == [128 + 192, 192 + 192, 192 + 192 + 192]
    assert live_in_place(found) == live(found)


def test_what_nobody_reads_is_dropped_at_once() -> None:
    nodes = (conv("image w0", "unread"), conv("image w0", "logits"))
    assert live(profile(graph(*nodes))) == [128 + 192, 128 + 192]


def test_parameters_and_work_of_a_chain() -> None:
    found = profile(graph(*CHAIN))
    assert found.params == 3 * 2 * 9 + 3 + 48 * 5
    assert found.weight_bytes == 4 * found.params
    assert [layer.macs for layer in found.layers] == [48 * 18, 0, 0, 5 * 48]
    assert [layer.flops for layer in found.layers] == [2 * 48 * 18, 48, 0, 2 * 5 * 48]
    assert (found.macs, found.flops) == (1104, 2256)


def test_intensity_is_work_over_weights_inputs_and_outputs() -> None:
    first, relu, view, last = profile(graph(*CHAIN)).layers
    assert first.moved_bytes == 4 * (54 + 3) + 128 + 192
    assert first.intensity == pytest.approx(1728 / 548)
    assert (relu.moved_bytes, relu.intensity) == (384, 48 / 384)
    assert (view.moved_bytes, view.intensity) == (0, None)
    assert last.moved_bytes == 960 + 192 + 20


WORK: dict[str, tuple[tuple[NodeProto, ...], dict[str, Any], int, int]] = {
    "a convolution in groups": (
        (conv("image g", "logits", group=2),),
        {"g": np.ones((4, 1, 3, 3), np.float32)},
        4 * 16 * 9,
        2 * 4 * 16 * 9,
    ),
    "a stride": ((conv("image w0", "logits", strides=[2, 2]),), {}, 3 * 4 * 18, 2 * 3 * 4 * 18),
    "a transposed convolution": (
        (node("ConvTranspose", "image t", "logits", strides=[2, 2]),),
        {"t": np.ones((2, 3, 2, 2), np.float32)},
        32 * 12,
        2 * 32 * 12,
    ),
    "a product": (
        (node("Flatten", "image", "flat"), node("MatMul", "flat m", "logits")),
        {"m": np.ones((32, 7), np.float32)},
        224,
        448,
    ),
    "a transposed product": (
        (node("Flatten", "image", "flat"), node("Gemm", "m flat", "logits", transA=1, transB=1)),
        {"m": np.ones((32, 7), np.float32)},
        224,
        448,
    ),
    "pooling by windows": (
        (node("MaxPool", "image", "logits", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),),
        {},
        0,
        32 * 9,
    ),
    "pooling of all": ((node("GlobalAveragePool", "image", "logits"),), {}, 0, 32),
    "batch norm": (
        (node("BatchNormalization", "image s s s s", "logits"),),
        {"s": np.ones(2, np.float32)},
        0,
        64,
    ),
    "moving": ((node("Transpose", "image", "logits", perm=[0, 2, 3, 1]),), {}, 0, 0),
    "adding": ((node("Add", "image image", "logits"),), {}, 0, 32),
}


@pytest.mark.parametrize("name", WORK)
def test_work_is_counted_by_operator(name: str) -> None:
    nodes, more, macs, flops = WORK[name]
    found = profile(graph(*nodes, **more))
    assert (found.macs, found.flops) == (macs, flops)


def test_int8_weights_are_counted_as_they_are_stored() -> None:
    nodes = (
        node("DequantizeLinear", "q scale", "weights"),
        node("QuantizeLinear", "image scale zero", "small"),
        node("DequantizeLinear", "small scale zero", "back"),
        conv("back weights", "logits"),
    )
    scale, zero = np.float32(0.1), np.uint8(128)
    found = profile(graph(*nodes, q=np.ones((3, 2, 3, 3), np.int8), scale=scale, zero=zero))
    assert [layer.kind for layer in found.layers] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert found.params == 54
    assert found.layers[2].weight_bytes == 54 + 4
    assert live(found) == [128 + 32, 32 + 128, 128 + 192]


def test_constants_in_nodes_are_weights() -> None:
    value = numpy_helper.from_array(np.ones((1, 2, 4, 4), np.float32))
    nodes = (helper.make_node("Constant", [], ["k"], value=value), node("Add", "image k", "logits"))
    found = profile(graph(*nodes))
    assert (found.weight_bytes, found.layers[0].weight_bytes) == (128, 128)
    assert live(found) == [256]


def test_a_constant_given_as_a_number_takes_no_bytes() -> None:
    nodes = (helper.make_node("Constant", [], ["k"], value_float=2.0), node("Mul", "image k", "logits"))
    assert profile(graph(*nodes)).weight_bytes == 0


def test_a_model_is_left_as_it_is() -> None:
    model = graph(*CHAIN)
    before = model.SerializeToString()
    profile(model)
    assert model.SerializeToString() == before


def test_a_node_before_what_it_reads_is_named() -> None:
    with pytest.raises(BundleError, match="reads 'a' before it is made"):
        profile(graph(node("Relu", "a", "logits"), conv("image w0", "a")))


def test_a_shape_that_cannot_be_inferred_is_named() -> None:
    nodes = (node("NonZero", "image", "places"), node("Cast", "places", "logits", to=TensorProto.FLOAT))
    with pytest.raises(BundleError, match="the shape of 'places' cannot be inferred"):
        profile(graph(*nodes))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(BundleError, match="its shapes cannot be inferred"):
        profile(graph(node("Flatten", "image", "flat"), node("MatMul", "flat v", "logits")))


def test_a_graph_that_ignores_its_image_is_refused() -> None:
    with pytest.raises(BundleError, match="nothing in it depends on the image"):
        profile(graph(node("Identity", "v", "logits")))


def test_an_exported_network_has_the_work_that_its_layers_have() -> None:
    from export.to_onnx import to_onnx
    from training.models import build
    from training.models.count import macs

    net = build("resnet8_0.25_a", 10)
    assert profile(onnx.load_model_from_string(to_onnx(net, 32))).macs == macs(net, 32)
