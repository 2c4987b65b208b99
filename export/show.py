"""A bundle as tables that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cascade.files import Quantiser
from cascade.manifest import Manifest
from cascade.rules import ExitRule, Profile
from cascade.table import HEADER, exits_line, rows


def tables(manifest: Manifest) -> list[Table]:
    """Stages, exit rule and provenance, and one table for each set of figures."""
    result = [_stages(manifest), _about(manifest)]
    for figures in (manifest.calibration, manifest.test):
        if figures is not None:
            table = Table(*HEADER, title=f"figures on {figures.split}", caption=exits_line(figures))
            for row in rows(figures):
                table.add_row(*row)
            result.append(table)
    if manifest.profiles:
        result.append(profile_table(manifest.profiles))
    return result


def profile_table(profiles: Sequence[Profile]) -> Table:
    """One row a profile."""
    table = Table("profile", "keeps", "sure", "threshold", "accuracy", "as full", "MACs", title="profiles")
    for profile in profiles:
        table.add_row(
            profile.name,
            rule_in_words(profile),
            f"{1 - profile.delta:.0%}" if profile.certified and profile.delta is not None else "no",
            ", ".join(f"{value:.6f}" for value in profile.thresholds),
            "" if profile.accuracy is None else f"{profile.accuracy.value:.2%}",
            f"{profile.agreement.value:.2%}",
            f"{profile.macs.value / 1e6:.2f} M",
        )
    return table


def rule_in_words(profile: Profile) -> str:
    """What a profile is to keep, in a few words."""
    if profile.eps is not None and profile.delta is not None:
        where = "per exit" if profile.per_exit else "on average"
        return f"lose ≤ {100 * profile.eps:g} % {profile.rule} {where}"
    if profile.budget is not None:
        return f"≤ {profile.budget / 1e6:g} M MACs" if profile.rule == "cost" else f"≤ {profile.budget:g} ms"
    return f"{profile.rho:g} of the mean energy"


def _stages(manifest: Manifest) -> Table:
    table = Table(
        "stage",
        "role",
        "network",
        "file",
        "precision",
        "parameters",
        "MACs",
        title=f"{manifest.name} {manifest.version}",
    )
    for number, stage in enumerate(manifest.stages):
        cells = (stage.role, stage.network, stage.file, f"{stage.params:,}", f"{stage.macs:,}")
        table.add_row(str(number), *cells)
    return table


def _about(manifest: Manifest) -> Table:
    rule, made = manifest.preprocess, manifest.provenance
    resize = f"{rule.resize} {rule.resize_to}" if rule.resize_to else rule.resize
    table = Table("", "", show_header=False)
    table.add_row("classes", f"{len(manifest.labels)}: {', '.join(manifest.labels[:12])}")
    table.add_row("input", f"{rule.size} x {rule.size} {rule.channels}, {resize}, crop {rule.crop}")
    table.add_row("mean, std", f"{rule.mean}, {rule.std}")
    table.add_row(
        "exit", f"{manifest.exit.definition} energy > {manifest.exit.threshold:.6f}, {_origin(manifest.exit)}"
    )
    table.add_row("precision", ", ".join(stage.precision for stage in manifest.stages))
    if made.quantiser is not None:
        table.add_row("int8", in_words(made.quantiser))
    table.add_row("made", f"{made.created} from {made.dataset}, recipe {made.recipe}, opset {made.opset}")
    return table


def in_words(options: Quantiser) -> str:
    """How a quantiser was set, on one line."""
    method = options.method if options.percentile is None else f"{options.method} {options.percentile}"
    kept = ", ".join(options.in_float) or "nothing"
    return f"{method} over {options.images} images, {options.weight_bits} bits, float: {kept}"


def _origin(exit_rule: ExitRule) -> str:
    rule = exit_rule.rule
    if rule.name == "fixed":
        return "a fixed number"
    kept = "held out of training" if rule.held_out else "also trained on"
    return f"{rule.ratio} of the energy of {rule.reference} on {rule.samples} samples {kept}"
