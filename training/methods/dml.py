"""DML: networks that learn from the labels and from each other, without a teacher.

Source: Zhang et al., "Deep Mutual Learning", 2018, arXiv 1706.00384, sections 3.1 to 3.3 and Algorithm 1: `L_1 =
CE(z_1, y) + KL(p_2 || p_1)`, and the other way round; temperature 1, the other's prediction held still. With more than
two, the mean of the divergences. On each batch the networks move in turn, and whoever comes next learns from
predictions made anew.

The peers are submodules of the method: `trainable` is the student and all of them, `deployable` the student alone, and
the checkpoint holds everybody, so that a run that was stopped goes on with the same peers.

The networks have one optimiser, which leaves alone whoever's turn it is not: momentum and weight decay are each one's
own, and the learning rate is everybody's. Batch norms see each batch once a turn, so as often as there are networks.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from training import models
from training.methods.base import Batch, Method, MethodConfig, Networks, TrainingSet, register
from training.methods.distiller import NonNegative
from training.methods.kd import kl


@register("dml")
class DML(Method):
    """The student and its peers teach each other."""

    class Config(MethodConfig):
        """`peers`: names of other networks; default one like the student. `mutual`: weight of the divergences."""

        peers: tuple[str, ...] = ()
        mutual: NonNegative = 1.0

    needs_teacher = False

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if config.peers:
            classes = _classes(nets.student, data.size)
            peers = [models.build(name, classes, data.size) for name in config.peers]
        else:
            peers = [another(nets.student)]
        self.peers = nn.ModuleList(peers).to(next(nets.student.parameters()).device)

    def turns(self) -> int:
        """One for each network: the student, then its peers."""
        return 1 + len(self.peers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `mutual` of the network whose turn it is: the student's, or `peer1_ce`, ..., a peer's."""
        nets = [self.student, *self.peers]
        net = nets.pop(batch.turn)
        own = net(batch.images).float()
        with torch.no_grad():
            others = [other(batch.images).float() for other in nets]
        prefix = f"peer{batch.turn}_" if batch.turn else ""
        return {
            f"{prefix}ce": functional.cross_entropy(own, batch.labels),
            f"{prefix}mutual": self.config.mutual * mutual_loss(own, others),
        }


def mutual_loss(logits: Tensor, others: list[Tensor]) -> Tensor:
    """The mean of `KL(p_other || p)` at temperature 1, of logits (B, K)."""
    return torch.stack([kl(logits, other, 1.0) for other in others]).mean()


def another(net: nn.Module) -> nn.Module:
    """A network of the same shape with other random weights.

    The entries of each tensor are shuffled, which keeps to the distribution that the network's family draws them from,
    whatever that is.
    """
    peer = copy.deepcopy(net)
    with torch.no_grad():
        for value in peer.parameters():
            order = torch.randperm(value.numel(), device="cpu").to(value.device)
            value.copy_(value.flatten()[order].view_as(value))
    return peer


@torch.no_grad()
def _classes(net: nn.Module, size: int) -> int:
    was = net.training
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    classes: int = net.eval()(image).shape[-1]
    net.train(was)
    return classes
