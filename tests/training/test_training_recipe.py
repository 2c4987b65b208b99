"""Recipes: what is accepted, what is refused and why, and when two of them are the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cascade.errors import RecipeError
from tests.tiny_run import document
from training.recipe import Recipe, load, parse
from training.settings import Schedule, Stop

pytestmark = pytest.mark.train

NAN, INFINITY = float("nan"), float("inf")
VANILLA = {"name": "vanilla"}
TEACHER = {"model": "resnet8_a", "method": VANILLA}
SHORT_SIDE = {"name": "digits", "size": 16, "resize": "short_side"}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    return path


def data(**changes: Any) -> dict[str, Any]:
    return {"data": {"name": "digits", **changes}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"colour": "red"}, "colour: no such key; there are name, seed, data, "),
    "a key of another spelling": ({"studnet": {}}, r"studnet: no such key; did you mean student\?"),
    "a method without a mapping": (
        {"student": {"model": "resnet8_a", "method": "kd"}},
        r"student\.method: should be keys and values, such as \{name: kd\}",
    ),
    "one network where there may be several": (
        {"residual": {"models": "resnet8_a"}},
        r"residual\.models: should be a list, such as \[a, b\]",
    ),
    "milestones in epochs": ({"schedule": {"milestones": [150, 180]}}, "look like epochs: give shares of the run"),
    "milestones that are no list": ({"schedule": {"milestones": 0.5}}, r"schedule\.milestones: should be a list"),
    "no name": ({"name": None}, "name: is missing"),
    "a choice that there is not": ({"exit": {"reference": "R"}}, r"exit\.reference: should be 'S_n' or 'T'"),
    "an unknown key of the data": (data(colour="red"), r"data\.colour"),
    "an unknown key of the augmentation": (
        data(augment={"blur": 1}),
        r"data\.augment\.blur: no such key; there are pad, flip",
    ),
    "a crop of nothing": (data(augment={"area": [0, 1]}), r"area \[0.0, 1.0\] should be .*, such as \[0.08, 1\]"),
    "a crop of more than a picture": (data(augment={"area": [0.08, 1.5]}), r"data\.augment: area .* 1 at most"),
    "a largest crop before the smallest": (data(augment={"area": [1, 0.08]}), "the smallest and the largest share"),
    "one share for both": (data(augment={"area": 0.08}), r"augment\.area: should be a list, such as \[a, b\]"),
    "two ways to crop": (data(augment={"area": [0.08, 1], "pad": 4}), "set pad to 0, or area to null"),
    "an unknown key of the stopping rule": (
        {"residual": {"models": ["resnet8_a"], "stop": {"patience": 3}}},
        r"residual\.stop\.patience",
    ),
    "an unknown key of a network's schedule": (
        {"student": {"model": "resnet8_a", "method": VANILLA, "schedule": {"epohcs": 3}}},
        r"student\.schedule\.epohcs: no such key; did you mean epochs\?",
    ),
    "a bad value in a network's schedule": (
        {"teacher": {**TEACHER, "schedule": {"epochs": 0}}},
        r"teacher\.schedule\.epochs",
    ),
    "a step of no other run": (
        {"teacher": {**TEACHER, "step": "teacher_round2"}},
        "teacher.step is one of another run",
    ),
    "a design from a teacher that is not pruned": (
        {"student": {"model": "designed", "method": VANILLA}},
        "a designed student follows what pruning left",
    ),
    "a bad value in the schedule of pruning": (
        {"teacher": {**TEACHER, "prune": {"schedule": {"epochs": 0}}}},
        r"teacher\.prune\.schedule\.epochs",
    ),
    "a best epoch on samples that are trained on": (
        {"data": {"name": "digits"}, "schedule": {"select": "dv_loss"}},
        "schedule.select compares epochs on D_v",
    ),
    "a student that was cut to begin from": (
        {
            "student": {"model": "resnet8_a", "method": VANILLA, "slim": {"rate": 0.3}},
            "residual": {"models": ["resnet8_a"], "start": "previous"},
        },
        "what was cut has none for a whole network",
    ),
    "a res-student that begins as one that was cut": (
        {"residual": {"models": ["resnet8_a"], "start": "previous", "slim": {"rate": 0.3}}},
        "what was cut has none for a whole network",
    ),
    "no data": ({"data": None}, "data"),
    "no student": ({"student": None}, "student"),
    "a name that is a path": ({"name": "../tiny"}, "name"),
    "a name too long for a bundle": ({"name": "n" * 101}, "name"),
    "a seed that is no number": ({"seed": "lucky"}, "seed"),
    "an image too small": (data(size=7), r"data\.size"),
    "a D_v of nothing": (data(dv_fraction=0), r"data\.dv_fraction"),
    "a D_v of everything": (data(dv_fraction=1), r"data\.dv_fraction"),
    "a std of zero": (data(std=[0.2, 0, 0.2]), r"data\.std\.1"),
    "a negative std": (data(std=[-0.2, 0.2, 0.2]), r"data\.std\.0"),
    "a mean that is NaN": (data(mean=[NAN, 0, 0]), r"data\.mean\.0"),
    "a short side of no length": ({"data": SHORT_SIDE}, r"data: .*resize_to"),
    "a short side under the crop": ({"data": {**SHORT_SIDE, "resize_to": 15}}, r"data: .*resize_to"),
    "a length for a stretch": (data(resize_to=64), r"data: .*resize_to"),
    "a length beyond reason": ({"data": {**SHORT_SIDE, "resize_to": 10_000}}, "data: .*8192"),
    "a learning rate of zero": ({"schedule": {"lr": 0}}, r"schedule\.lr"),
    "a learning rate that is NaN": ({"schedule": {"lr": NAN}}, r"schedule\.lr"),
    "a learning rate without end": ({"schedule": {"lr": INFINITY}}, r"schedule\.lr"),
    "no epochs": ({"schedule": {"epochs": 0}}, r"schedule\.epochs"),
    "batches of one, which batch norm cannot take": ({"schedule": {"batch_size": 1}}, r"schedule\.batch_size"),
    "a policy nobody knows": ({"schedule": {"policy": "warm"}}, r"schedule\.policy"),
    "a milestone after the end": ({"schedule": {"milestones": [0.5, 1.5]}}, "look like epochs"),
    "a device nobody knows": ({"runtime": {"device": "tpu"}}, r"runtime\.device"),
    "a teacher from nowhere": ({"teacher": {"model": "resnet8_a"}}, "teacher: .*exactly one"),
    "a teacher from two places": ({"teacher": {**TEACHER, "weights": "w.pth"}}, "teacher: .*exactly one"),
    "a teacher without a model": ({"teacher": {"method": VANILLA}}, "teacher: .*needs a model"),
    "a model for a teacher from a run": ({"teacher": {"run": "r", "model": "resnet8_a"}}, "teacher: .*needs a model"),
    "res-students without a teacher": ({"teacher": None}, "give a teacher"),
    "res-students of no network": ({"residual": {"models": []}}, r"residual\.models"),
    "no stopping rule": ({"residual": {"models": ["resnet8_a"], "stop": {}}}, "energy, count or both"),
    "more res-students than allowed": (
        {"residual": {"models": ["resnet8_a"], "stop": {"count": 5}}},
        r"stop\.count 5 is over",
    ),
    "an exit definition nobody knows": ({"exit": {"definition": "mean"}}, r"exit\.definition"),
    "a threshold that is NaN": ({"exit": {"threshold": NAN}}, r"exit\.threshold"),
    "a threshold from a teacher that is not there": (
        {"teacher": None, "residual": None, "exit": {"reference": "T"}},
        r"exit\.reference is T",
    ),
    "a rho of zero": ({"exit": {"rho": 0}}, r"exit\.rho"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_refused_by_the_key_that_is_wrong(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(RecipeError, match=message):
        parse(document(**changes), "recipe.yaml")


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"^recipe.yaml: data\.size: .*; colour: "):
        parse(document(data={"name": "digits", "size": 1}, colour="red"), "recipe.yaml")


@pytest.mark.parametrize(
    "data",
    [{**SHORT_SIDE, "resize_to": 16}, {**SHORT_SIDE, "resize_to": 40}, {"name": "digits", "std": [1, 2, 3]}],
    ids=["short side", "longer short side", "a std of one's own"],
)
def test_preprocessing_that_fits_is_accepted(data: dict[str, Any]) -> None:
    assert parse(document(data=data), "recipe.yaml").data.name == "digits"


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("seed=7", lambda recipe: recipe.seed == 7),
        ("schedule.epochs=3", lambda recipe: recipe.schedule.epochs == 3),
        ("schedule.lr=5e-2", lambda recipe: recipe.schedule.lr == 0.05),
        ("data.augment.flip=true", lambda recipe: recipe.data.augment.flip),
        ("exit.rho=0.8", lambda recipe: recipe.exit.rho == 0.8),
        ("residual.models=[resnet8_a, resnet14_a]", lambda recipe: recipe.residual.models[1] == "resnet14_a"),
        ("data.name=imagefolder:a=b", lambda recipe: recipe.data.name == "imagefolder:a=b"),
        ("teacher.schedule.epochs=9", lambda recipe: recipe.schedule_for(recipe.teacher.schedule).epochs == 9),
        ("residual=null", lambda recipe: recipe.residual is None),
    ],
)
def test_a_setting_is_put_over_the_recipe(tmp_path: Path, setting: str, found: Any) -> None:
    assert found(load(written(tmp_path), (setting,)))


def test_resized_crops_need_no_pad() -> None:
    assert parse(document(**data(augment={"area": [0.08, 1]})), "recipe.yaml").data.augment.pad == 0


def test_a_recipe_without_resized_crops_is_the_run_that_it_was_before_there_were_any() -> None:
    augment = document()["data"]["augment"]
    plain, null = (parse(document(**data(augment=each)), "tiny") for each in (augment, {**augment, "area": None}))
    assert "area" not in plain.model_dump()["data"]["augment"]
    assert null.run_id() == plain.run_id()
    resized = parse(document(**data(augment={"area": [0.08, 1], "flip": False})), "tiny")
    assert resized.model_dump()["data"]["augment"]["area"] == (0.08, 1)
    assert resized.run_id() != plain.run_id()


def test_later_settings_win(tmp_path: Path) -> None:
    assert load(written(tmp_path), ("seed=1", "seed=2")).seed == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "takes key=value"),
        ("=7", "takes key=value"),
        ("seed.deep=7", "'seed' holds a value"),
        ("seed=[", "not a YAML value"),
        ("schedule.epohcs=3", r"schedule\.epohcs"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(written(tmp_path), (setting,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [", "cannot read the recipe"),
        (b"\xff\xfe\xfa", "cannot read the recipe"),
        (b"", "must be a mapping"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"!!python/object/apply:os.getcwd []", "cannot read the recipe"),
    ],
    ids=["not YAML", "not text", "empty", "a list", "code"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse(document(), "tiny")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 2  # type: ignore[misc]


def run_id(**changes: Any) -> str:
    return parse(document(**changes), "tiny").run_id()


def test_defaults_that_are_spelled_out_are_the_same_run() -> None:
    assert run_id(exit={"rho": 0.9, "definition": "summed"}) == run_id()


def test_the_order_of_keys_is_the_same_run() -> None:
    assert run_id(**dict(reversed(document().items()))) == run_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"exit": {"rho": 0.8}},
        {"schedule": {"epochs": 3}},
        {"student": {"model": "resnet14_a", "method": VANILLA}},
    ],
)
def test_another_setting_is_another_run(changes: dict[str, Any]) -> None:
    assert run_id(**changes) != run_id()


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "last"), ({"epochs": 3}, "last"), ({"select": "dv_accuracy"}, "dv_accuracy")]
)
def test_a_rounds_last_weights_go_on_unless_its_own_schedule_selects_others(
    given: dict[str, Any], expected: str
) -> None:
    schedule = {**document()["schedule"], "select": "dv_loss"}
    teacher = {**TEACHER, "prune": {"schedule": given} if given else {}}
    recipe = parse(document(**data(dv_exclude=True), schedule=schedule, teacher=teacher), "tiny")
    selected = {part: recipe.schedule_for(own).select for part, own in recipe.trained().items()}
    assert selected.pop("teacher.prune") == expected
    assert set(selected.values()) == {"dv_loss"}


def test_a_student_may_be_called_the_stage_that_it_is(tmp_path: Path) -> None:
    ours = document()
    renamed = {"stage0": ours.pop("student"), **ours}
    assert parse(renamed, "tiny") == parse(document(), "tiny")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(renamed))
    for key in ("student", "stage0"):
        assert load(path, (f"{key}.method.tau=0.25",)).student.method["tau"] == 0.25


def test_a_recipe_that_extends_another_may_use_the_other_name_of_the_student(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(document()))
    (tmp_path / "above.yaml").write_text("extends: base.yaml\nstage0: {method: {tau: 0.25}}\n")
    assert (
        load(tmp_path / "above.yaml").student
        == parse(document(student={**document()["student"], "method": {"name": "kd", "tau": 0.25}}), "tiny").student
    )


def test_a_student_under_both_names_is_refused() -> None:
    with pytest.raises(RecipeError, match="tiny: stage0 is another name of student, and both are given"):
        parse(document(stage0=document()["student"]), "tiny")


def test_what_it_runs_on_is_the_same_run() -> None:
    assert run_id(runtime={"threads": 7, "precision": "bf16", "compile": True}) == run_id()


def test_what_it_is_exported_as_is_the_same_run() -> None:
    assert run_id(export={"precision": "int8", "fused": True}) == run_id()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"export": {"pixels": True}}, "add fused"),
        ({"export": {"pixels": True, "fused": True}, "data": {**SHORT_SIDE, "resize_to": 16}}, "can only stretch them"),
        ({"export": {"folder": "steps"}}, "take another folder"),
        ({"export": {"folder": "../elsewhere"}}, r"export\.folder"),
        ({"export": {"precision": "int4"}}, r"export\.precision"),
        ({"export": {"precision": "int8,fp32"}}, "2 precisions for 3 stages"),
        ({"export": {"precision": "int8,fp32"}, "residual": None}, "2 precisions for 1 stages"),
        (
            {"export": {"precision": "int8,fp32"}, "residual": {"models": ["resnet8_a"], "stop": {"energy": 0.9}}},
            "leaves their number open",
        ),
    ],
)
def test_an_export_that_cannot_be_made_is_refused_before_training(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse(document(**changes), "tiny")


def test_a_precision_for_each_stage_fits_a_known_number_of_them() -> None:
    parse(document(export={"precision": "int8,fp32,fp16"}), "tiny")


def test_a_changed_default_is_another_run() -> None:
    class Later(Recipe):
        schedule: Schedule = Schedule(epochs=3)

    plain = document(schedule=None)
    assert Later.model_validate(plain).run_id() != Recipe.model_validate(plain).run_id()


def test_a_run_id_survives_being_written_down() -> None:
    recipe = parse(document(), "tiny")
    assert parse(recipe.model_dump(mode="json"), "recipe.json").run_id() == recipe.run_id()


def test_a_network_may_have_its_own_schedule() -> None:
    recipe = parse(document(), "tiny")
    own = recipe.schedule_for({"epochs": 9})
    assert (own.epochs, own.batch_size) == (9, recipe.schedule.batch_size)


@pytest.mark.parametrize(
    ("rule", "residuals", "energy", "done"),
    [
        (Stop(energy=0.9), 1, 0.91, True),
        (Stop(energy=0.9), 1, 0.9, False),
        (Stop(energy=0.9), 3, 0.1, False),
        (Stop(energy=0.9), 4, 0.1, True),
        (Stop(energy=0.9, max_stages=2), 2, 0.1, True),
        (Stop(count=2), 1, 1.0, False),
        (Stop(count=2), 2, 0.1, True),
        (Stop(energy=0.9, count=2), 1, 1.0, False),
        (Stop(energy=0.9, count=2), 2, 1.0, True),
        (Stop(energy=0.9, count=2), 2, 0.5, False),
        (Stop(energy=0.9), 1, NAN, False),
    ],
)
def test_res_students_are_added_until_every_rule_holds_or_there_are_too_many(
    rule: Stop, residuals: int, energy: float, done: bool
) -> None:
    assert rule.done(residuals, energy, teacher_energy=1.0) is done


def test_the_energy_has_to_exceed_its_share_of_the_teachers() -> None:
    assert not Stop(energy=0.5).done(1, 0.4, teacher_energy=0.8)
    assert Stop(energy=0.5).done(1, 0.41, teacher_energy=0.8)
