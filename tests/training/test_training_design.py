"""Students designed from sparsity: the paper's numbers, and every published plan from its own counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cascade.errors import RecipeError
from training import models
from training.models.count import params
from training.models.shapes import without_numbers
from training.models.vgg import PRD
from training.pruning.compare import beside, layers
from training.pruning.design import Left, chain, designed
from training.pruning.magnitude import prunable

pytestmark = pytest.mark.train

# Table 10: weights of each convolution of VGG19 that are left after 79 %, and those of the paper's student.
LEFT = [
    *(1087, 18102, 50134, 97936, 198189, 381144, 379358, 344924),
    *(548035, 749074, 461873, 196359, 99450, 84433, 225496, 328861),
]
PUBLISHED = [
    *(1080, 17640, 48951, 96903, 196425, 378675, 376992, 342720),
    *(544680, 746532, 461340, 196020, 98901, 83916, 224532, 326106),
]
RESNETS = [
    *("resnet18_st36_tiny_imagenetstem", "resnet18_st59_tiny_imagenetstem", "resnet18_st79_tiny_cifarstem"),
    *("resnet18dbl_st36_tiny_imagenetstem", "resnet18dbl_st59_tiny_cifarstem", "resnet18dbl_st79_tiny_imagenetstem"),
    *("resnet50_st36_tiny_imagenetstem", "resnet50_st59_tiny_cifarstem", "resnet50_st79_tiny_imagenetstem"),
    *("resnet18_tiny_imagenetstem", "resnet18dbl_tiny_cifarstem", "resnet50_tiny_imagenetstem", "resnet34_cifar"),
]


def shapes(name: str, classes: int = 100) -> nn.Module:
    return without_numbers(lambda: models.build(name, classes, 64))


def unpruned(net: nn.Module) -> Left:
    return {name: (weight.numel(), weight.numel()) for name, weight in prunable(net)}


def pruned79(teacher: nn.Module) -> Left:
    """Table 10's counts under the names of our VGG19."""
    names = [name for name, weight in prunable(teacher) if weight.ndim == 4]
    return dict(zip(names, zip(LEFT, LEFT, strict=True), strict=True))


def test_eq_9_gives_the_papers_counts_these_widths() -> None:
    widths = chain([(9, count) for count in LEFT])
    assert widths == [40, 50, 111, 98, 225, 188, 224, 171, 356, 234, 219, 100, 110, 85, 295, 124]
    pairs = zip([3, *widths], widths, strict=False)
    assert sum(9 * before * width for before, width in pairs) + 124 * 100 == 4_176_205


def test_the_published_student_has_the_papers_weights_and_is_within_two_of_eq_9() -> None:
    student = shapes("vgg19_st79_prd")
    assert [weight.numel() for _, weight in prunable(student) if weight.ndim == 4] == PUBLISHED
    assert sum(weight.numel() for _, weight in prunable(student)) == 4_153_613
    widths = [int(width) for width in PRD["vgg19_st79_prd"].replace("|", " ").split()]
    assert all(abs(one - other) <= 2 for one, other in zip(widths, chain([(9, n) for n in LEFT]), strict=True))


def test_table_10_has_the_students_weights_beside_its_teachers_layer_by_layer() -> None:
    teacher, student = shapes("vgg19_prd"), shapes("vgg19_st79_prd")
    rows = beside((weight.numel() for _, weight in prunable(student)), layers(unpruned(teacher)))
    assert [row.kept for row in rows] == [*PUBLISHED, 122 * 100, 4_153_613]
    assert [row.total for row in rows[:2]] == [27 * 64, 9 * 64 * 64]
    assert rows[-1].total == sum(weight.numel() for _, weight in prunable(teacher))


def test_a_vggs_student_has_its_blocks_and_the_widths_of_eq_9_and_can_be_built() -> None:
    teacher = shapes("vgg19_prd")
    name = designed("vgg19_prd", teacher, pruned79(teacher))
    assert name == "vgg_40-50_111-98_225-188-224-171_356-234-219-100_110-85-295-124_prd"
    assert sum(weight.numel() for _, weight in prunable(shapes(name))) == 4_176_205


@pytest.mark.parametrize("name", sorted(PRD))
def test_a_vgg_of_which_nothing_was_pruned_is_its_own_student(name: str) -> None:
    teacher = shapes(name)
    student = shapes(designed(name, teacher, unpruned(teacher)))
    assert [weight.shape for weight in student.parameters()] == [weight.shape for weight in teacher.parameters()]


@pytest.mark.parametrize("name", RESNETS)
def test_a_residual_network_of_which_nothing_was_pruned_is_its_own_student(name: str) -> None:
    teacher = shapes(name, 200)
    student = shapes(designed(name, teacher, unpruned(teacher)), 200)
    assert [weight.shape for weight in student.parameters()] == [weight.shape for weight in teacher.parameters()]


def test_a_residual_networks_student_has_the_weights_that_are_left_stage_by_stage() -> None:
    teacher = shapes("resnet18_tiny_imagenetstem", 200)
    left = {name: (total // 5, total) for name, (total, _) in unpruned(teacher).items()}
    name = designed("resnet18_tiny_imagenetstem", teacher, left)
    student = shapes(name, 200)
    assert name.startswith("resnet18_")
    for number in range(4):
        counts = [
            sum(weight.numel() for key, weight in prunable(net) if key.startswith(f"stages.{number}."))
            for net in (teacher, student)
        ]
        assert counts[1] == pytest.approx(counts[0] / 5, rel=0.03)


def test_a_layer_of_which_nothing_is_left_keeps_a_channel() -> None:
    assert chain([(9, 0), (9, 18), (9, 1)]) == [1, 2, 1]


def test_a_name_with_widths_builds_them() -> None:
    net = models.build("vgg_4-6_8_prd", 3, 16)
    assert params(net) == (27 * 4 + 4 + 8) + (36 * 6 + 6 + 12) + (54 * 8 + 8 + 16) + 8 * 3 + 3
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("name", ["mobilenetv2_tiny", "vgg16_tiny", "resnet8_a", "jointrd_resnet18_cifar"])
def test_a_teacher_of_another_family_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no student can be designed"):
        designed(name, shapes(name), {})
