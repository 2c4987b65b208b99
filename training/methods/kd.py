"""Knowledge distillation from logits, by KL divergence or by L2.

Source: ResKD, Eq. 3: `tau * t^2 * L_TS(sigma(S/t), sigma(T/t)) + (1 - tau) * CE(S, y)`; Hinton, Vinyals, Dean,
"Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, for the KL form.

What Eq. 3 leaves open: with L2 it may mean softened probabilities, or, as Eq. 19 of the paper's analysis has it,
logits; there the temperature cancels. `logits` is the default, averaged over classes. All four combinations can be
chosen.

The benchmarks that the feature methods come from (see `training.methods.distiller`) mean the KL form at T = 4: `bench:
crd` weighs it 0.9 and the labels 0.1, `bench: simkd` both 1.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from training.methods.base import Batch, Method, MethodConfig, register


class TeacherTerm(MethodConfig):
    """How two sets of logits are compared.

    Attributes:
        ts_loss: `l2` or `kl`.
        l2_space: compare `logits`, or `probs` softened by t.
        l2_reduce: `mean` or `sum` over classes; over the batch it is always the mean.
        t: temperature.
    """

    ts_loss: Literal["l2", "kl"] = "l2"
    l2_space: Literal["logits", "probs"] = "logits"
    l2_reduce: Literal["mean", "sum"] = "mean"
    t: Annotated[float, Field(gt=0)] = 20.0

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """`t^2 * L_TS` of two (B, K) float32 tensors."""
        if self.ts_loss == "kl":
            return kl(student, target, self.t)
        return l2(student, target, self.t, self.l2_space, self.l2_reduce)


def kl(student: Tensor, target: Tensor, t: float) -> Tensor:
    """`t^2 / B * sum q (log q - log p)` with q = softmax(target / t), p = softmax(student / t): (B, K) -> scalar."""
    log_p = functional.log_softmax(student / t, dim=1)
    log_q = functional.log_softmax(target / t, dim=1)
    return t**2 * functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def l2(student: Tensor, target: Tensor, t: float, space: str, reduce: str) -> Tensor:
    """Squared difference of logits, or `t^2` times that of softened probabilities: (B, K) -> scalar."""
    if space == "probs":
        student, target = t * torch.softmax(student / t, dim=1), t * torch.softmax(target / t, dim=1)
    squares = (student - target).square()
    return squares.mean() if reduce == "mean" else squares.sum(1).mean()


@register("kd")
class KD(Method):
    """The student imitates the teacher's logits and the labels."""

    class Config(TeacherTerm):
        """Weights, and whose defaults hold for whatever is not given.

        Attributes:
            bench: `reskd`, or a benchmark: `crd` or `simkd`.
            tau: weight of the teacher's term.
            ce: weight of the labels'; default 1 - tau.
        """

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {
            "crd": {"ts_loss": "kl", "t": 4.0, "tau": 0.9},
            "simkd": {"ts_loss": "kl", "t": 4.0, "tau": 1.0, "ce": 1.0},
        }
        bench: Literal["reskd", "crd", "simkd"] = "reskd"
        tau: Annotated[float, Field(ge=0, le=1)] = 0.5
        ce: Annotated[float, Field(ge=0)] | None = None

        @model_validator(mode="before")
        @classmethod
        def _as_in_the_benchmark(cls, given: dict[str, Any]) -> dict[str, Any]:
            bench = given.get("bench")
            return {**(cls.BENCHES.get(bench, {}) if isinstance(bench, str) else {}), **given}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ts` and `ce`."""
        with torch.no_grad():
            target = self.teacher(batch.images)
        logits = self.student(batch.images).float()
        tau, ce = self.config.tau, self.config.ce
        return {
            "ts": tau * self.config(logits, target),
            "ce": (1 - tau if ce is None else ce) * functional.cross_entropy(logits, batch.labels),
        }
