"""Per-sample logits of every stage, and the figures that follow from them.

Evaluation is always fp32, in eval mode, without augmentation, whatever a run trained in.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import RecipeError
from cascade.fields import Frozen
from cascade.figures import Sample, accuracy, energy_threshold, mean_energy, measure, running_sums, sweep
from cascade.manifest import Figures
from training import checkpoint
from training.compiled import uncompiled
from training.data import Batches, Split, load
from training.device import choose
from training.epochs import Epochs, epochs_of
from training.models.count import macs
from training.published import PublishedRow
from training.run import Run
from training.settings import ExitConfig

EVALUATION_BATCH = 500

Logits = NDArray[np.float32]


def logits_of(nets: Sequence[nn.Module], split: Split, batches: Batches) -> list[Logits]:
    """Each network's logits for every sample of a split.

    Args:
        nets: left in eval mode.
        split: N samples.
        batches: on the networks' device.

    Returns:
        One (N, K) float32 array a network, in the split's order.
    """
    parts: list[list[Tensor]] = [[] for _ in nets]
    for net in nets:
        net.eval()
    # uncompiled: graphs would be made again for eval mode, and for the last, smaller batch
    with torch.inference_mode(), uncompiled():
        for batch in batches.plain(split, EVALUATION_BATCH):
            for part, net in zip(parts, nets, strict=True):
                part.append(net(batch.images).float().cpu())
    return [torch.cat(part).numpy() for part in parts]


def labels_of(split: Split) -> NDArray[np.int64]:
    """(N,) int64 labels in the split's order."""
    labels: NDArray[np.int64] = split.labels[split.index].cpu().numpy()
    return labels


def summary(name: str, logits: Logits, split: Split) -> dict[str, Any]:
    """Accuracy and mean energy of one network or sum on one split."""
    return {"name": name, "accuracy": accuracy(logits, labels_of(split)), "energy": mean_energy(logits)}


def agreement(one: Logits, other: Logits) -> float:
    """Share of samples, in [0, 1], for which two networks' largest logits (N, K) are of one class.

    Source: Park, No, "Prune Your Model Before Distill It", 2022, table 8.
    """
    return float((one.argmax(1) == other.argmax(1)).mean())


class SweepRow(Frozen):
    """What one threshold gives: accuracy in [0, 1], mean MACs a sample, share of samples that leave at each stage."""

    threshold: float
    accuracy: float
    macs: float
    exits: tuple[float, ...]


class HeadFigures(Frozen):
    """A head that a stage's method trained beside the one that is served: its accuracies by itself, in [0, 1]."""

    stage: str
    name: str
    dv: float
    test: float


class Evaluation(Frozen):
    """Figures of a finished run, from torch's own networks, at the threshold of the recipe's rule.

    `published` is the row of a paper's table that the run repeats, if it does; `agreement` is the share of test images,
    in [0, 1], to which the student by itself and the teacher it had give the same class, if it had one.
    """

    threshold: float
    dv: Figures
    test: Figures
    dv_sweep: tuple[SweepRow, ...] = ()
    test_sweep: tuple[SweepRow, ...] = ()
    published: PublishedRow | None = None
    agreement: float | None = None
    heads: tuple[HeadFigures, ...] = ()
    epochs: tuple[Epochs, ...] = ()


def evaluate(run: Run, *, sweep_thresholds: bool = False, quiet: bool = False) -> Evaluation:
    """Write every network's logits on D_v and test, and the figures, into a finished run.

    The threshold is the recipe's rule on these networks' energies; export computes its own on the exported ones.

    Args:
        run: finished.
        sweep_thresholds: also measure thresholds from 0.05 to 1 in steps of 0.05.
        quiet: show no progress.

    Returns:
        The figures, which are also in the run's `evaluation.json`.

    Raises:
        RecipeError: the run has not finished.
    """
    device = choose(run.recipe.runtime)
    data = load(run.recipe.data, quiet=quiet).to(device.where)
    batches = Batches(data.preprocess, device.where)
    dv, test = (
        measure_split(run, name, split, batches, data.preprocess.size)
        for name, split in (("dv", data.dv), ("test", data.test))
    )
    threshold, definition = threshold_for(run.recipe.exit, dv), run.recipe.exit.definition
    thresholds = [step / 20 for step in range(1, 21)] if sweep_thresholds else []
    evaluation = Evaluation(
        threshold=threshold,
        dv=measure(dv, threshold, definition),
        test=measure(test, threshold, definition),
        dv_sweep=tuple(SweepRow.model_validate(row) for row in sweep(dv, thresholds, definition)),
        test_sweep=tuple(SweepRow.model_validate(row) for row in sweep(test, thresholds, definition)),
        published=None if run.recipe.published is None else run.recipe.published.taken(),
        agreement=None if test.teacher_logits is None else agreement(test.teacher_logits, test.stage_logits[0]),
        heads=tuple(head for stage in run.stages() for head in measure_heads(run, stage, data.dv, data.test, batches)),
        epochs=epochs_of(run),
    )
    checkpoint.write_json(run.folder / "evaluation.json", evaluation.model_dump(mode="json"))
    return evaluation


def measure_heads(run: Run, stage: str, dv: Split, test: Split, batches: Batches) -> list[HeadFigures]:
    """The accuracies of what a stage's method trained beside its network, where the run has kept it."""
    heads = {name: net.to(batches.device) for name, net in run.heads(stage).items()}
    if not heads:
        return []
    found = (
        [accuracy(logits, labels_of(split)) for logits in logits_of(list(heads.values()), split, batches)]
        for split in (dv, test)
    )
    return [
        HeadFigures(stage=stage, name=name, dv=on_dv, test=on_test)
        for name, on_dv, on_test in zip(heads, *found, strict=True)
    ]


def reference(rule: ExitConfig, dv: Sample) -> Logits:
    """The logits on D_v whose mean energy the threshold is a share of.

    Raises:
        RecipeError: the rule names the teacher, and there is none.
    """
    if rule.reference == "S_n":
        return running_sums(dv.stage_logits)[-1]
    if dv.teacher_logits is None:
        raise RecipeError("exit.reference is T, and the run has no teacher: use S_n or a threshold")
    return dv.teacher_logits


def threshold_for(rule: ExitConfig, dv: Sample) -> float:
    """The exit threshold that a recipe's rule gives for logits on D_v. Source: ResKD section 4, Eq. 10."""
    return rule.threshold if rule.threshold is not None else energy_threshold(reference(rule, dv), rule.rho)


def measure_split(run: Run, name: str, split: Split, batches: Batches, size: int) -> Sample:
    """Logits of the teacher and every stage on one split; also stored in the run's `logits/`."""
    teacher = run.teacher()
    names = [*([teacher] if teacher else []), *run.stages()]
    nets = [run.network(step)[1].to(batches.device) for step in names]
    logits = dict(zip(names, logits_of(nets, split, batches), strict=True))
    costs = {step: macs(net, size) for step, net in zip(names, nets, strict=True)}
    labels = labels_of(split)
    store = io.BytesIO()
    arrays: dict[str, Any] = {"labels": labels, "index": split.index.cpu().numpy()}
    arrays |= {"teacher" if step == teacher else step: values for step, values in logits.items()}
    np.savez(store, **arrays)
    checkpoint.write_atomic(run.folder / "logits" / f"{name}.npz", store.getvalue())
    return Sample(
        split=name,
        labels=labels,
        stage_logits=[logits[step] for step in run.stages()],
        costs=[costs[step] for step in run.stages()],
        teacher_logits=logits[teacher] if teacher else None,
        teacher_cost=costs[teacher] if teacher else 0,
    )
