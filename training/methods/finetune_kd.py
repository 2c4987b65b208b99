"""Distillation from logits into a student that begins as a finished network, not from random weights.

Source: "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts" (JointRD), 2020, rebuttal
table 2: Hinton's KD on top of a finished plain network; the loss and its numbers are appendix Eq. 4,
`0.9 * 4^2 * KL + 0.1 * CE`. The rebuttal leaves open whether KD comes after JointRD, as here, or during it, as
`joint_rd` with `kd_mode: during` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from training import checkpoint
from training.methods.base import Networks, TrainingSet, register
from training.methods.kd import KD


@register("finetune_kd")
class FinetuneKD(KD):
    """KD by KL divergence from where another run ended."""

    class Config(KD.Config):
        """`start`: a run's `network.safetensors` that holds the same network; its classifier is taken if it fits.

        The appendix's numbers are those of `bench: crd`.
        """

        NETWORKS: ClassVar[tuple[str, ...]] = ("start",)

        bench: Literal["crd", "simkd"] = "crd"
        ts_loss: Literal["l2", "kl"] = "kl"
        t: Annotated[float, Field(gt=0)] = 4.0
        tau: Annotated[float, Field(ge=0, le=1)] = 0.9
        start: str | None = None

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if config.start is not None:
            path = Path(config.start).expanduser()
            ours, theirs = self.student.state_dict(), checkpoint.load_network(path)[1].state_dict()
            for name in ("classifier.weight", "classifier.bias"):
                if name in ours and name in theirs and ours[name].shape != theirs[name].shape:
                    theirs[name] = ours[name]
            checkpoint.fill(self.student, theirs, path)
