"""CRD: a sample's embedding by the student is that of the same sample by the teacher, and of no other class.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020, arXiv 1910.10699, section 3, with the
memory banks of its code: one positive, which is the sample itself, and negatives drawn anew for each sample from the
other classes, without replacement where there are enough. Both embeddings are trained.

As in the code, and unlike the paper: scores are divided by a constant Z for each side, which is set from the first
batch and never again, and carries no gradient. N, there and in the share of noise `m / N`, is the number of samples
that are trained on; samples of a held-out D_v are never drawn.

Differences from the code: the scores of a batch with the whole bank are one matrix product, from which those that count
are taken, instead of B x (m + 1) rows copied out of the bank: N x B numbers instead of B x (m + 1) x 128, which is 13
MB instead of 537 for CIFAR. An embedding of zeros stays zero instead of becoming NaN.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, distributed, nn

from cascade.errors import RecipeError
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig, Positive
from training.methods.maps import unit
from training.models.contract import Features

EPSILON = 1e-7
LARGE = 100_000  # samples, beyond which no key is thrown for each of them


@register("crd")
class CRD(Distiller):
    """Student and teacher embed a sample alike, and samples of other classes elsewhere."""

    class Config(DistillerConfig):
        """`width` of the embeddings, `negatives` a sample, `temperature`, `momentum` of the memory's rows."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 0.8}, "simkd": {"weight": 0.8}}
        width: Annotated[int, Field(gt=0)] = 128
        negatives: Annotated[int, Field(gt=0)] = 16384
        temperature: Positive = 0.07
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, teacher = self.shapes.vector
        self.embed_student, self.embed_teacher = nn.Linear(student, config.width), nn.Linear(teacher, config.width)
        self.others = OtherClasses(data)
        self.student_bank = Bank(data, config.width, config.temperature, config.momentum)
        self.teacher_bank = Bank(data, config.width, config.temperature, config.momentum)

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Both sides; in training mode the memory takes the batch in before it is asked again, or looked at."""
        ours = unit(self.embed_student(student.maps[-1]))
        theirs = unit(self.embed_teacher(teacher.maps[-1]))
        drawn = self.others.draw(batch.labels, self.config.negatives)
        index = torch.cat([batch.index[:, None], drawn], 1)
        samples = self.others.count
        loss = contrast(*self.teacher_bank.scores(ours, index, samples), samples) + contrast(
            *self.student_bank.scores(theirs, index, samples), samples
        )
        if self.training:
            self.student_bank.keep(batch.index, ours)
            self.teacher_bank.keep(batch.index, theirs)
        return loss


class Bank(nn.Module):
    """A remembered embedding for each sample, and the constant that scores against it are divided by.

    Everything is a buffer, so that a checkpoint holds it. The backward pass needs the rows as they were, so a batch
    that is kept moves its rows only when scores are asked for again, or the state is read: no step copies the bank.

    Args:
        data: how many samples there are.
        width: of an embedding.
        temperature: of the scores.
        momentum: what a row keeps of itself when a new embedding comes.
    """

    rows: Tensor
    z: Tensor

    def __init__(self, data: TrainingSet, width: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("rows", (torch.rand(len(data.labels), width) * 2 - 1) / math.sqrt(width / 3))
        self.register_buffer("z", torch.tensor(-1.0))
        self.kept: tuple[Tensor, Tensor] | None = None
        self.register_state_dict_pre_hook(lambda bank, *_: bank.settle())  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(lambda bank, *_: bank.forget())  # type: ignore[no-untyped-call]

    def scores(self, embedded: Tensor, index: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """How each embedding (B, D) fits the rows that `index` (B, 1 + m) names: exp scores (B, 1 + m), and Z."""
        self.settle()
        similar = embedded @ self.rows.T
        scores = (similar.gather(1, index) / self.temperature).exp()
        with torch.no_grad():
            z = torch.where(self.z < 0, mean_everywhere(scores.mean() * samples), self.z)
            if self.training:
                self.z.copy_(z)
        return scores, z

    def keep(self, index: Tensor, embedded: Tensor) -> None:
        """Remember new embeddings (B, D) of these samples (B,), for when the backward pass is over."""
        self.kept = from_everywhere(index), from_everywhere(embedded.detach())

    def forget(self) -> None:
        """Drop what was kept."""
        self.kept = None

    @torch.no_grad()
    def settle(self) -> None:
        """Move the rows towards what was kept, and make them of length one again."""
        if self.kept is None:
            return
        (index, embedded), self.kept = self.kept, None
        self.rows[index] = unit(self.momentum * self.rows[index] + (1 - self.momentum) * embedded)


class OtherClasses(nn.Module):
    """Draws samples of other classes than given ones.

    Args:
        data: labels, and which samples are trained on.

    Raises:
        RecipeError: there is only one class to draw from.
    """

    by_class: Tensor
    first: Tensor
    sizes: Tensor

    def __init__(self, data: TrainingSet) -> None:
        super().__init__()
        index = data.index.cpu()
        labels = data.labels.cpu()[index]
        sizes = torch.bincount(labels)
        if int((sizes > 0).sum()) < 2:
            raise RecipeError("method 'crd' contrasts classes, and all training samples have the same: add others")
        self.count = len(index)
        self.least, self.most = (self.count - int(size) for size in (sizes.max(), sizes[sizes > 0].min()))
        self.register_buffer("by_class", index[labels.argsort(stable=True)], persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)

    def draw(self, labels: Tensor, count: int) -> Tensor:
        """`count` samples for each label (B,), of other classes: (B, count) int64.

        Without replacement, except for labels that have fewer others than `count`.
        """
        sizes = self.sizes[labels][:, None]
        others = self.count - sizes
        places = (torch.rand(len(labels), count, device=labels.device, dtype=torch.float64) * others).long()
        if self.least >= count:
            places = self.without_replacement(others, count)
        elif self.most >= count:  # the one case in which the CPU waits for the device: some classes have enough
            enough = others[:, 0] >= count
            places[enough] = self.without_replacement(others[enough], count)
        # Samples lie class by class: whatever is behind the own class's lies that much further.
        return self.by_class[places + (places >= self.first[labels][:, None]) * sizes]

    def without_replacement(self, others: Tensor, count: int) -> Tensor:
        """`count` different places below each of `others` (B, 1), none of which is below `count`: (B, count) int64.

        Up to `LARGE` samples each gets a random key, and the highest win: B x N numbers. Beyond that, where at most a
        quarter of the others is wanted, places are drawn with replacement, some more than are wanted, and the first
        different ones stay: about B x `count`.
        """
        if self.count > LARGE and self.least >= 4 * count:
            return first_different(others, count, self.least)
        keys = torch.rand(len(others), self.count, device=others.device)
        none = torch.arange(self.count, device=others.device) >= others
        return keys.masked_fill_(none, -1.0).topk(count, dim=1, sorted=False).indices


def first_different(others: Tensor, count: int, least: int) -> Tensor:
    """The first `count` different numbers of a random sequence, a row for each upper bound.

    Args:
        others: (B, 1) int64; numbers of a row are from 0 to below it.
        count: wanted of a row; few beside `least`.
        least: of `others`, as a plain number.

    Returns:
        (B, count) int64. The sequence is so long that with probability over 1 - exp(-72) a row has enough of them: the
        n-th repeats an earlier one with probability n / least at most, and Chernoff's bound says how many do. Otherwise
        some come twice, as nobody waits for the device to say so.
    """
    again = count * count / least  # numbers that come again are fewer, on average
    length = count + math.ceil(again + 12 * math.sqrt(again) + 48)
    drawn = (torch.rand(len(others), length, device=others.device, dtype=torch.float64) * others).long()
    values, order = drawn.sort(dim=1, stable=True)
    seen = torch.zeros_like(drawn, dtype=torch.bool)
    seen.scatter_(1, order[:, 1:], values[:, 1:] == values[:, :-1])
    place = torch.arange(length, device=others.device) + length * seen
    return drawn.gather(1, place.topk(count, dim=1, largest=False, sorted=False).indices)


def contrast(scores: Tensor, z: Tensor, samples: int) -> Tensor:
    """How hard it is to tell the positive from noise: a negative log-likelihood, the mean over the batch.

    With `p_i = scores_i / Z`: `-[log p_0 / (p_0 + m / N) + sum_{i=1..m} log (m / N) / (p_i + m / N)]`.

    Args:
        scores: (B, 1 + m), exp of similarity over temperature; the positive comes first.
        z: what they are divided by, a scalar.
        samples: N.
    """
    noise = (scores.shape[1] - 1) / samples
    p = scores / z
    positive = (p[:, :1] / (p[:, :1] + noise + EPSILON)).log()
    negative = (noise / (p[:, 1:] + noise + EPSILON)).log()
    return -(positive.sum() + negative.sum()) / len(scores)


def from_everywhere(x: Tensor) -> Tensor:
    """The rows of all processes, so that each has the same memory."""
    if not distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def mean_everywhere(x: Tensor) -> Tensor:
    """The mean of a scalar over all processes."""
    return from_everywhere(x[None]).mean()
