"""CMI and SimKD: a student under its teacher's classifier, from images that were made from the teacher alone.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, section 4.5
and table 7: images as CMI makes them, and SimKD's loss in place of its KL. It is the student under the reused
classifier that the images have to part from the teacher; of that the paper says nothing.
"""

from __future__ import annotations

from typing import ClassVar

from training.methods.base import register
from training.methods.cmi import Inverted
from training.methods.simkd import SimKD
from training.synthesis.inversion import InversionConfig


@register("cmi_simkd")
class CMISimKD(Inverted, SimKD):
    """SimKD from images that its teacher takes for its data; no data."""

    class Config(InversionConfig, SimKD.Config):
        """Those of CMI's images, and those of SimKD."""

    takes_several_teachers: ClassVar[bool] = False
