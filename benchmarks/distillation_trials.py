"""Which methods the comparison has, with which settings, and what its trials are.

The weights of the losses are the CRD benchmark's wherever it has the method, whatever suits them better here; methods
that make their own images have the sizes of `training/recipes/data_free/digits.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

PLAIN = "vanilla"
_IMAGES = {"width": 16, "noise": 64}
_INVERTED = {
    **_IMAGES,
    "synthesis_batch": 128,
    "synthesis_steps": 100,
    "student_steps": 100,
    "negatives": 512,
}
SEVERAL: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("aveg", "aekd", "aekd_f", "simkd_v")},
    "simkd, several teachers": {"name": "simkd"},
    "simkd_v, ten times the lr": {"name": "simkd_v"},
    "simkd, several teachers, ten times the lr": {"name": "simkd"},
}
NO_DATA: dict[str, dict[str, Any]] = {
    **{name: {"name": name, **_IMAGES, "generator_batch": 128} for name in ("zskt", "dafl")},
    **{name: {"name": name, **_INVERTED} for name in ("cmi", "cmi_simkd")},
}
METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {"name": PLAIN},
    "kd": {"name": "kd", "bench": "crd"},
    "kd, L2 of logits": {"name": "kd"},
    **{name: {"name": name} for name in ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "nst", "fsp")},
    **{name: {"name": name} for name in ("crd", "crd_kd", "srrl", "semckd", "dml", "simkd", "simkd_joint")},
    "simkd_sequential": {"name": "simkd_sequential"},
    "semckd, half the lr": {"name": "semckd"},
    "semckd, a tenth of its weight": {"name": "semckd", "weight": 40.0},
    "vanilla, ten times the lr": {"name": PLAIN},
    "kd, ten times the lr": {"name": "kd", "bench": "crd"},
    "simkd, ten times the lr": {"name": "simkd"},
    **SEVERAL,
    **NO_DATA,
}
# What a row's learning rate is, as a share of the trial's.
RATES = {
    row: share for words, share in (("ten times the lr", 10), ("half the lr", 0.5)) for row in METHODS if words in row
}
FASTER = tuple(row for row, share in RATES.items() if share > 1 and row not in SEVERAL)
GENTLER = tuple(row for row in METHODS if row.startswith("semckd,"))
COMMON = tuple(row for row in METHODS if row not in (*RATES, *GENTLER, *SEVERAL, *NO_DATA))
# What the registry has beside them, and why it has no row here.
ELSEWHERE = {
    "finetune_kd": "goes on from another student",
    "joint_rd": "networks of its own",
    "margin_kd": "networks of its own",
    "res_kd": "trains what follows a student",
    "slimming": "prunes",
}
BODY_FROM = {"simkd_sequential": "simkd"}
ALONE = (PLAIN, "dml", *BODY_FROM)  # names of methods that ask no teacher


@dataclass(frozen=True)
class Trial:
    """One student and its teachers on one data set.

    Attributes:
        data: the recipe's part on data; without a name it is CIFAR-10, whose images `--images` says.
        student, teacher: names of networks.
        schedule: of everything.
        teacher_schedule: what differs for teachers.
        methods: which have a row.
        teachers: how many there are, of different seeds; one alone is the first.
        precision: of the forward pass in training.
    """

    data: dict[str, Any]
    student: str
    teacher: str
    schedule: dict[str, Any]
    teacher_schedule: dict[str, Any]
    methods: tuple[str, ...] = COMMON
    teachers: int = 1
    precision: str = "fp32"


DIGITS: dict[str, Any] = {"name": "digits", "size": 16, "augment": {"pad": 2, "flip": False}}
_UNSEEN: dict[str, Any] = {**DIGITS, "augment": {"pad": 1, "flip": False}, "dv_fraction": 0.15, "dv_exclude": True}
_CIFAR10 = {"size": 16, "train_per_class": 1000, "augment": {"pad": 2, "flip": True}, "dv_fraction": 0.05}
_WHOLE_CIFAR10 = {"size": 32, "augment": {"pad": 4, "flip": True}, "dv_fraction": 0.05}
_USUAL = {"nesterov": True, "weight_decay": 5e-4}
_SCHEDULE = {**_USUAL, "lr": 0.05, "policy": "one_cycle"}
_PAPERS = {**_USUAL, "lr": 0.05, "policy": "step", "milestones": [0.625, 0.75, 0.875]}
_SMALL_CIFAR10 = Trial(
    _CIFAR10,
    "resnet8_0.5_a",
    "resnet14_a",
    {**_SCHEDULE, "epochs": 8, "batch_size": 64},
    {"epochs": 30},
    (*COMMON, *FASTER),
    precision="bf16",
)
TRIALS = {
    "digits": Trial(
        DIGITS,
        "resnet8_0.125_a",
        "resnet20_a",
        {**_SCHEDULE, "epochs": 10, "batch_size": 32},
        {"epochs": 12},
        (*COMMON, *GENTLER),
    ),
    "cifar10": _SMALL_CIFAR10,
    "reuse": replace(
        _SMALL_CIFAR10,
        student="resnet20_a",
        teacher="resnet14_2_a",
        teacher_schedule={"epochs": 16},
        methods=(PLAIN, "kd", "simkd", *FASTER),
    ),
    "gpu": Trial(
        _WHOLE_CIFAR10,
        "resnet8x4",
        "resnet32x4",
        {**_PAPERS, "epochs": 240, "batch_size": 64},
        {},
        (PLAIN, "kd", "crd", "simkd"),
        precision="bf16",
    ),
    "teachers": Trial(
        DIGITS,
        "resnet8_0.125_a",
        "resnet14_0.5_a",
        {**_SCHEDULE, "epochs": 10, "batch_size": 32},
        {"epochs": 12},
        (PLAIN, "kd", "simkd", *FASTER, *SEVERAL),
        teachers=3,
    ),
    "teachers_cifar10": replace(_SMALL_CIFAR10, methods=(PLAIN, "kd", "simkd", *FASTER, *SEVERAL), teachers=3),
    "no_data": Trial(
        _UNSEEN,
        "resnet8_0.25_a",
        "resnet20_0.5_a",
        {**_USUAL, "lr": 0.1, "policy": "cosine", "epochs": 40, "batch_size": 32},
        {"epochs": 12, "policy": "one_cycle"},
        (PLAIN, "kd", *NO_DATA),
    ),
    "no_data_cifar10": replace(
        _SMALL_CIFAR10,
        schedule={**_USUAL, "lr": 0.1, "policy": "cosine", "epochs": 16, "batch_size": 64},
        teacher_schedule={"epochs": 30, "policy": "one_cycle", "lr": 0.05},
        methods=(PLAIN, "kd", *NO_DATA),
    ),
}
