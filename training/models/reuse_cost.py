"""What a reused teacher costs in parameters.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, Eq. 6 and
tables S.8 to S.10. Taken literally the numerator of Eq. 6 leaves the student's classifier out twice; what the paper
prints is `1 - deployed / teacher`, with everything that is deployed and nothing else, and so is this.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training import models
from training.models.count import params
from training.models.reused import Reuse, Reused
from training.models.shapes import without_numbers


@dataclass(frozen=True)
class ReuseCost:
    """Parameters of the networks and their parts.

    Attributes:
        student: the whole student, its own classifier too.
        projectors: all of them.
        reused: what is taken of the teachers.
        deployed: what is served: body of the student, projectors, and what is reused.
        teacher: all teachers together.
    """

    student: int
    projectors: int
    reused: int
    deployed: int
    teacher: int

    @property
    def pruning_ratio(self) -> float:
        """How much smaller than the teacher the deployed network is, as a share of the teacher."""
        return 1 - self.deployed / self.teacher

    @property
    def cost(self) -> float:
        """How much of that is lost beside the student alone, as a share of the teacher."""
        return (self.deployed - self.student) / self.teacher

    @property
    def projector_share(self) -> float:
        """The projectors beside the student."""
        return self.projectors / self.student


def reuse_cost(student: str, teachers: tuple[str, ...], config: Reuse, num_classes: int, size: int) -> ReuseCost:
    """Count, without making any weights.

    Args:
        student: its name.
        teachers: their names.
        config: what is reused.
        num_classes: K.
        size: pixels a side.

    Raises:
        RecipeError: no such networks, or they do not fit.
    """

    def blank(name: str) -> nn.Module:
        return without_numbers(lambda: models.build(name, num_classes, size))

    whole = blank(config.name(student, teachers))
    assert isinstance(whole, Reused), "so it is named"
    deployed, projectors = params(whole), sum(params(branch.front) for branch in whole.branches)
    body = sum(params(part) for part in (whole.stem, whole.stages, whole.head))
    return ReuseCost(
        student=params(blank(student)),
        projectors=projectors,
        reused=deployed - body - projectors,
        deployed=deployed,
        teacher=sum(params(blank(name)) for name in teachers),
    )
