"""The exit threshold of a bundle, from the exported networks' own logits on D_v.

Source: ResKD, Eq. 10 and its experiments: TH = rho * Energy(ref, D_v), with ref the whole cascade or the teacher.
"""

from __future__ import annotations

from cascade.figures import Sample, mean_energy
from cascade.rules import ExitRule, ThresholdRule
from training.evaluate import reference, threshold_for
from training.settings import ExitConfig


def exit_rule(config: ExitConfig, dv: Sample, fingerprint: str, *, held_out: bool) -> ExitRule:
    """Compute the threshold and say where it came from.

    Args:
        config: the recipe's rule.
        dv: exported logits on D_v.
        fingerprint: of D_v.
        held_out: whether D_v was kept out of training.

    Raises:
        RecipeError: the reference is the teacher, and there is none.
    """
    threshold = threshold_for(config, dv)
    if config.threshold is not None:
        return ExitRule(definition=config.definition, threshold=threshold, rule=ThresholdRule(name="fixed"))
    rule = ThresholdRule(
        name="energy_ratio",
        ratio=config.rho,
        reference=config.reference,
        energy=mean_energy(reference(config, dv)),
        samples=len(dv.labels),
        fingerprint=fingerprint,
        held_out=held_out,
    )
    return ExitRule(definition=config.definition, threshold=threshold, rule=rule)
