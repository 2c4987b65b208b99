"""What papers have reached with a recipe and its variants: the rows of their tables, to be held against one's own.

A pair of networks has a dozen rows or more, which differ in a setting or two. A recipe therefore lists them under
`published`: what each changes, and its figure. Nothing of it changes what is trained, so it is no part of the run's id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cascade.errors import RecipeError
from training.document import assign
from training.settings import Frozen

FOLDER = Path(__file__).with_name("recipes")
BASES = "bases"
HARMLESS = ("seed", "name", "runtime", "export", "data.root")

Percent = Annotated[float, Field(ge=0, le=100)]
Epoch = Literal["best", "last"]


class PublishedRow(Frozen):
    """One row: accuracies on the test images in percent; `mean` is that of all stages together.

    `epoch` says which one they are of, where that is known: the `last`, or the `best` on the test images themselves.
    """

    name: str
    source: str
    mean: Percent
    std: Percent | None = None
    teacher: Percent | None = None
    epoch: Epoch | None = None


class Published(Frozen):
    """Rows of papers' tables.

    Attributes:
        source: paper and tables.
        figures: accuracy on the test images of all stages together, percent, by row; or mean and standard deviation;
            None for a row that no paper has.
        rows: what each row puts over the recipe, by dotted keys; there may be more of them than figures.
        teacher: its accuracy, percent; where it differs from row to row, by row.
        row: the one that the recipe is; None where other settings made it something else.
        epoch: which one the figures are of: the `last`, or the `best` on the test images; None where nobody says.
    """

    source: str
    figures: Annotated[dict[str, Percent | tuple[Percent, Percent] | None], Field(min_length=1)]
    rows: dict[str, dict[str, Any]]
    teacher: Percent | dict[str, Percent] | None = None
    row: str | None
    epoch: Epoch | None = None

    @model_validator(mode="after")
    def _names_are_rows(self) -> Self:
        of_teachers = self.teacher if isinstance(self.teacher, dict) else {}
        if unknown := sorted({*self.figures, *of_teachers} - set(self.rows)):
            raise ValueError(f"published.rows does not say what {', '.join(unknown)} would be")
        if self.row is not None and self.row not in self.figures:
            raise ValueError(f"published.row {self.row!r} has no figure; there are {', '.join(self.figures)}")
        return self

    def get(self, name: str) -> PublishedRow | None:
        """One row with its figures, if any were published."""
        figure = self.figures[name]
        if figure is None:
            return None
        mean, std = figure if isinstance(figure, tuple) else (figure, None)
        teacher = self.teacher.get(name) if isinstance(self.teacher, dict) else self.teacher
        return PublishedRow(name=name, source=self.source, mean=mean, std=std, teacher=teacher, epoch=self.epoch)

    def taken(self) -> PublishedRow | None:
        """The row that the recipe is, if it is one that was published."""
        return None if self.row is None else self.get(self.row)


def take_row(document: dict[str, Any], row: str, source: str) -> None:
    """Make a recipe that is not checked yet the one of a published row.

    Args:
        document: changed in place.
        row: its name.
        source: of the document, for errors.

    Raises:
        RecipeError: there is no such row.
    """
    published = document.get("published")
    published = published if isinstance(published, dict) else {}
    figures, rows = (published.get(key) or {} for key in ("figures", "rows"))
    if row not in figures or row not in rows:
        there = [name for name in figures if name in rows]
        hint = f"it has {', '.join(there)}" if there else "it has none: leave --row out"
        raise RecipeError(f"{source} has no row {row!r}; {hint}")
    for key, value in rows[row].items():
        assign(document, key, value)
    published["row"] = row


def forget_row(document: dict[str, Any], keys: Iterable[str]) -> None:
    """A recipe whose settings were changed is no published row any more, unless the result should be the same.

    A folder of images is where somebody keeps a data set; any other name is another data set.
    """
    published, data = document.get("published"), document.get("data")
    elsewhere = isinstance(data, dict) and str(data.get("name")).startswith("imagefolder:")
    harmless = (*HARMLESS, *(("data.name",) if elsewhere else ()))
    changed = [key for key in keys if not any(f"{key}.".startswith(f"{same}.") for same in harmless)]
    if changed and isinstance(published, dict):
        published["row"] = None


def shipped() -> list[Path]:
    """Every recipe that comes with the project, without those that others only extend."""
    return sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != BASES)
