"""What a run computes on: device, precision, memory order, and how many processes share the work.

Plain torch rather than Lightning Fabric: what a run needs of it is an autocast, a memory format, and a mean of
gradients, about sixty lines, and no dependency decides when torch can be upgraded. Several GPUs are
`torchrun --nproc-per-node N -m training train ...`: every process draws the same batch, takes its slice, and averages
gradients before the step. Averaging by hand instead of wrapping in DistributedDataParallel lets a method call any part
of a network (features, a cut, a helper) without going round the wrapper.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from cascade.errors import DeviceUnavailable
from training.settings import Runtime

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A process's place in a run.

    Attributes:
        where: the device.
        dtype: of the forward pass in training.
        channels_last: memory order of maps.
        compile: whether networks are compiled.
        rank, world: this process among all.
    """

    where: torch.device
    dtype: torch.dtype
    channels_last: bool
    compile: bool
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of the forward pass."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.where.type, self.dtype)

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network here."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        placed: nn.Module = net.to(device=self.where, memory_format=order)  # type: ignore[call-overload]
        return placed

    def slice(self, index: Tensor) -> Tensor:
        """This process's part of a batch: every world-th sample."""
        return index[self.rank :: self.world]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def share(self, module: nn.Module) -> None:
        """Give every process the first one's weights and running statistics."""
        if self.world > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The CPU does not wait until it is there: it leaves for a GPU from page-locked memory."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "cpu")


def is_first() -> bool:
    """Whether this is the only process, or the first of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def choose(settings: Runtime) -> Device:
    """Set torch up as a recipe's runtime says, and join the other processes where torchrun started some.

    Raises:
        DeviceUnavailable: a GPU was asked for and there is none.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise DeviceUnavailable(
                f"runtime.device is {name!r} and torch sees {count} GPUs: name one of those, or cpu"
            )
        torch.cuda.set_device(device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Device(device, DTYPES[settings.precision], settings.channels_last, settings.compile, rank, world)
