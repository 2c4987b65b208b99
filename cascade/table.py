"""Figures as rows of text, so that training, export and a person read the same table."""

from __future__ import annotations

from cascade.manifest import Figures

HEADER = ("", "accuracy", "mean MACs", "of full", "energy")


def rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row a network: the teacher, each sum, the adaptive cascade."""
    full = figures.sums[-1].macs
    networks = [*figures.sums, figures.adaptive]
    if figures.teacher is not None:
        networks.insert(0, figures.teacher)
    return [
        (
            network.name,
            f"{network.accuracy:.2%}",
            f"{network.macs / 1e6:.2f} M",
            f"{network.macs / full:.1%}" if full else "",
            "" if network.energy is None else f"{network.energy:.4f}",
        )
        for network in networks
    ]


def exits_line(figures: Figures) -> str:
    """The share of samples that left at each stage, in words."""
    shares = ", ".join(f"S{number} {share:.1%}" for number, share in enumerate(figures.exits))
    return f"exits of {figures.samples} samples: {shares}"
