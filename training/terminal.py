"""Tables on a terminal, or in a pipe, with all their digits."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def console_for(tables: Sequence[Table]) -> Console:
    """Standard output; where a terminal or a pipe is too narrow for a figure, wider than that.

    Args:
        tables: whose columns of figures are `no_wrap`; what else they hold is wrapped or folded.
    """
    console = Console()
    unbound = console.options.update_width(10_000)
    return Console(width=max(console.width, *(Measurement.get(console, unbound, table).minimum for table in tables)))
