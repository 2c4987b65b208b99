"""torch.compile for networks that are entered and left anywhere.

Methods ask a network for logits, for all of its maps, for one of them, or for what follows one; in their turn these
call stem, stages, head and pool. So a network is compiled as a whole, which is one graph for whoever wants logits
alone, and each of its parts by itself, which is a graph a part for everybody else; inside the whole a part is traced
like any other module. All of it is in place: the modules, and the names in a checkpoint, stay what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from training.methods.base import Method
from training.models.contract import Network

PARTS = ("stem", "stages", "head", "pool")
# Graphs for one piece of Python, such as a stage's forward, before torch gives up and runs it as it is written; its own
# 8 are too few for the stages of a student, its teachers and both modes. So many networks never have the same.
GRAPHS = 128


def compile_network(net: nn.Module, **how: Any) -> None:
    """Compile a network and each of its parts, in place.

    Call it after whatever looks at the network's shapes, which would be compiled for a batch of one.

    Args:
        net: of stages, or any other, which is compiled as a whole alone.
        how: for `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    for module in (net, *parts(net)):
        # not dynamic: torch would take the channels of the next stage for another size of the same, and every batch is
        # as large as the one before
        module.compile(dynamic=False, **how)


def compile_helpers(method: Method, **how: Any) -> None:
    """Compile what a method and its phases train beside the student and have convolutions in, in place.

    Args:
        method: its student is left as it is; so are teachers, unless they are the method's own and learn.
        how: for `torch.compile`.
    """
    for helper in callable_in(method):
        if helper is not method.student and any(isinstance(part, nn.Conv2d) for part in helper.modules()):
            compile_network(helper, **how)
    for phase in method.phases():
        compile_helpers(phase.method, **how)


def parts(net: nn.Module) -> Iterator[nn.Module]:
    """Stem, stages, head and pool, those of them that hold weights; nothing of what is no network of stages."""
    if not isinstance(net, Network):
        return
    for name, child in net.named_children():
        if name in PARTS:
            yield from (part for part in opened(child) if any(True for _ in part.parameters()))


def callable_in(module: nn.Module) -> Iterator[nn.Module]:
    """A module's children; those of a list instead of the list."""
    for child in module.children():
        yield from opened(child)


def opened(module: nn.Module) -> Iterator[nn.Module]:
    """What a list of modules holds, of any depth; the module itself where it is none."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield from callable_in(module)
    else:
        yield module


def uncompiled() -> AbstractContextManager[object]:
    """Run everything as it is written for a while: where hooks have to be called, or a graph would be used once."""
    # Nothing is compiled before torch's compiler is there, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
