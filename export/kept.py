"""What a network itself costs, for what was exported of it to be held against.

Parameters of the graph are the network's less what was folded. A batch norm of C channels has 2 C, its weight and bias;
folded into a convolution without a bias it leaves C, that bias, and into one that has a bias nothing. What the forward
pass never reads, such as an auxiliary classifier, is not in the graph either, and a bias that is zero throughout, as
before any training, need not be.

Both are exact where every parameter belongs to a convolution, a linear layer or a norm. Others, such as attention's
tables of positions, are computed with before any image is there, and the exporter does so once and for all: it writes
what comes out, which may be more numbers, and saves the products.
"""

from __future__ import annotations

from torch import fx, nn

from cascade.errors import BundleError
from export.count import Count
from export.to_onnx import fold_batch_norm
from training.models.count import macs
from training.models.dirac import fold_dirac

PLAIN = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def check(net: nn.Module, size: int, found: Count, where: str) -> None:
    """An exported graph has the network's parameters, less what was folded, and its multiply-accumulates.

    Args:
        net: that was exported.
        size: pixels a side.
        found: what the graph counts.
        where: field of the bundle, for messages.

    Raises:
        BundleError: it has other ones, or of a network that computes with other parameters, more products.
    """
    traced, products = fold_batch_norm(fold_dirac(net).cpu().eval()), macs(net, size)
    exact = all(isinstance(module, PLAIN) for module in traced.modules() if _own(module))
    if found.macs != products and (exact or found.macs > products):
        raise BundleError(f"{where}.macs", f"the exported graph has {found.macs}, the network has {products}")
    read = _read(traced)
    left = sum(each.numel() for _, each in read)
    zeros = sum(each.numel() for name, each in read if name == "bias" and not each.any())
    if exact and not left - zeros <= found.params <= left:
        message = f"the exported graph has {found.params}, the network has {left} after folding its batch norms"
        raise BundleError(f"{where}.graph_params", message)


def _read(traced: fx.GraphModule) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters of the modules that a traced network calls, for each call."""
    called = [traced.get_submodule(str(node.target)) for node in traced.graph.nodes if node.op == "call_module"]
    return [each for module in called for each in module.named_parameters()]


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
