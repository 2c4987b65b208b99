"""CRD+KD: contrastive distillation together with that of logits.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020, arXiv 1910.10699, Table 1, last row:
`CE + KD(T=4) + 0.8 CRD`. Everything else is `training.methods.crd`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from training.methods.base import register
from training.methods.crd import CRD


@register("crd_kd")
class CRDWithKD(CRD):
    """CRD, and KD at its full weight."""

    class Config(CRD.Config):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {
            "crd": {"weight": 0.8, "kd": 1.0},
            "simkd": {"weight": 0.8, "kd": 1.0},
        }
