"""What a run says while it goes: a progress bar, `metrics.jsonl`, and TensorBoard's format."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cascade.errors import RecipeError
from training import checkpoint


class Log:
    """Progress of a run.

    `metrics.jsonl` has a line an epoch: step, epoch, losses, accuracy on D_v. A resumed run does not repeat lines:
    those that its checkpoint does not cover are dropped first, so the file is that of a run which was never stopped.

    Args:
        folder: of the run; None writes no files, as in every process but the first.
        quiet: show nothing.
    """

    def __init__(self, folder: Path | None, *, quiet: bool = False) -> None:
        self.folder = folder
        self.console = Console(stderr=True, quiet=quiet or folder is None)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.lines: list[dict[str, Any]] = []
        self.writer: Any = None

    def __enter__(self) -> Self:
        if self.folder is not None:
            self.lines = read(self.folder)
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def begin(self, step: str, batches: int, epochs_done: int) -> None:
        """Start to show a step, and forget what earlier tries said about epochs that have to be run again."""
        self.tasks[step] = self.progress.add_task(step, total=batches, note="")
        self.lines = [line for line in self.lines if line["step"] != step or line["epoch"] <= epochs_done]
        self._close()
        if self.folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._flush()
            self.writer = SummaryWriter(str(self.folder / "tensorboard" / step), purge_step=epochs_done + 1)

    def advance(self, step: str, done: int) -> None:
        """`done` batches of the step are over."""
        self.progress.update(self.tasks[step], completed=done)

    def epoch(self, step: str, epoch: int, figures: dict[str, float], images_per_s: float) -> None:
        """An epoch is over."""
        self.lines.append({"step": step, "epoch": epoch, **figures})
        if self.writer is not None:
            for name, value in {**figures, "speed/images_per_s": images_per_s}.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()
            self._flush()
        note = f"D_v {figures['dv/accuracy']:.2%}, {images_per_s:.0f} images/s"
        self.progress.update(self.tasks[step], note=note)
        if not self.console.is_terminal:
            self.console.print(f"{step}: epoch {epoch}: {note}")

    def end(self, step: str, text: str) -> None:
        """The step is over; say what came of it."""
        self.progress.update(self.tasks[step], visible=False)
        self.say(f"{step}: {text}")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.progress.console.print(text, highlight=False)

    def _flush(self) -> None:
        assert self.folder is not None, "only called where files are written"
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        checkpoint.write_atomic(self.folder / "metrics.jsonl", text.encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of `metrics.jsonl`, an epoch each; none where it has no such file.

    Raises:
        RecipeError: the file is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise RecipeError(f"{path} is damaged, a line of it is no JSON: remove it, or that line") from error
