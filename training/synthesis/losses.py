"""What made images are judged by: pure functions of what teacher and student say of them.

Source: Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", 2019, arXiv 1905.09768
(`adversarial_loss`); Chen et al., "Data-Free Learning of Student Networks", 2019, arXiv 1904.01186, section 3
(`one_hot_loss`, `activation_loss`, `entropy_loss`); Fang et al., "Contrastive Model Inversion for Data-Free Knowledge
Distillation", 2021, arXiv 2105.08584 (`contrastive_loss`, and the mask of `adversarial_loss`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-30


def adversarial_loss(student: Tensor, teacher: Tensor, *, where_agreed: bool = False) -> Tensor:
    """`-KL(teacher || student)` at temperature 1, the mean over the batch: images on which the two part.

    Args:
        student: logits (B, K).
        teacher: logits (B, K); both carry gradients to the images.
        where_agreed: let only those samples count that both put into the same class; the mean is still over all.
    """
    log_p, log_q = functional.log_softmax(student, 1), functional.log_softmax(teacher, 1)
    apart = (log_q.exp() * (log_q - log_p)).sum(1)
    if where_agreed:
        apart = apart * (student.argmax(1) == teacher.argmax(1))
    return -apart.mean()


def one_hot_loss(teacher: Tensor) -> Tensor:
    """Cross-entropy of the teacher's logits (B, K) against their own largest: images that it is sure of."""
    return functional.cross_entropy(teacher, teacher.argmax(1))


def activation_loss(vectors: Tensor) -> Tensor:
    """`-mean |f|` of the vectors (B, D) that the teacher's classifier reads: images that excite it."""
    return -vectors.abs().mean()


def entropy_loss(teacher: Tensor) -> Tensor:
    """`sum_k p_k log p_k`, p the batch's mean softmax of the teacher's logits (B, K): images of all classes alike."""
    p = torch.softmax(teacher, 1).mean(0)
    return (p * p.clamp_min(SMALLEST).log()).sum()


def contrastive_loss(local: Tensor, whole: Tensor, temperature: float, current: int) -> Tensor:
    """InfoNCE: a part of an image is that of its own whole, and of no other image.

    With parts l_i, wholes g_i and temperature t: `-log(exp(l_i . g_i / t) / sum_j exp(l_i . g_j / t))`.

    Args:
        local: (M, D), embeddings of parts, each of length one.
        whole: (M, D), those of the whole images, without gradient here.
        temperature: of the dot products.
        current: how many, from the first, are of this batch; the others come from the bank. Either group is averaged,
            and the means added, so that a large bank does not drown the batch.
    """
    logits = local @ whole.detach().T / temperature
    labels = torch.arange(len(logits), device=logits.device)
    groups = functional.cross_entropy(logits, labels, reduction="none").split([current, len(logits) - current])
    return torch.stack([group.mean() for group in groups if len(group)]).sum()
