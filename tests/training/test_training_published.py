"""Recipes that ship: published rows, what they make of a recipe, and files that extend another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cascade.errors import RecipeError
from cascade.manifest import Figures, NetworkFigures
from tests.tiny_run import DOCUMENT, document, train_tiny
from training.__main__ import main
from training.evaluate import evaluate
from training.methods.base import find
from training.models.families import FAMILIES
from training.published import BASES, FOLDER, shipped
from training.recipe import Recipe, load, parse
from training.rehearsal import rehearse
from training.schedule import learning_rate
from training.settings import DESIGNED
from training.table import published_line, recipe_lines

pytestmark = pytest.mark.train

ROWS: dict[str, dict[str, Any]] = {
    "alone": {"teacher": None, "residual": None, "student.method": {"name": "vanilla"}},
    "kd": {"student.method": {"name": "kd"}},
    "twice": {"residual.stop": {"count": 1}, "student.method.tau": 0.9},
}
PUBLISHED: dict[str, Any] = {
    "source": "Nobody, table 1",
    "teacher": 90.5,
    "figures": {"alone": 80, "kd": [85.5, 0.25], "twice": 86},
    "rows": ROWS,
    "row": "kd",
}


def rescade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def written(folder: Path, name: str = "recipe.yaml", **changes: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({"published": PUBLISHED, **DOCUMENT, **changes}))
    return path


def rows_of(path: Path) -> list[Recipe]:
    """A shipped recipe as each of its rows; itself, where it has none."""
    recipe = load(path)
    return [recipe] if recipe.published is None else [load(path, (), row) for row in recipe.published.figures]


def names_of(recipe: Recipe) -> set[str]:
    """Every network that a recipe names."""
    residual = recipe.residual
    teachers = (teacher.model for teacher in recipe.teachers_by_step().values())
    found = {*teachers, recipe.student.model, *(residual.models if residual else ())}
    return {name for name in found if name not in (None, DESIGNED)}


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_row_of_a_shipped_recipe_names_networks_and_methods_that_exist(path: Path) -> None:
    rows = rows_of(path)
    for name in set.union(*map(names_of, rows)):
        assert any(family.pattern.fullmatch(name) for family in FAMILIES), name
    for recipe in rows:
        parts = (*recipe.teachers_by_step().values(), recipe.student, recipe.residual)
        assert [find(part.method) for part in parts if part is not None and part.method is not None]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_is_its_default_row(path: Path) -> None:
    recipe = load(path)
    if recipe.published is not None:
        assert load(path, (), recipe.published.row).run_id() == recipe.run_id()


def test_no_two_shipped_recipes_share_a_name_or_a_run() -> None:
    recipes = [load(path) for path in shipped()]
    assert len({recipe.name for recipe in recipes}) == len({recipe.run_id() for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("crd/res20_res110.yaml", "vid"),
        ("simkd/vgg8_vgg13.yaml", "simkd"),
        ("simkd/imagenet_res18_res50.yaml", "simkd_30"),
        ("simkd/cmi_wrn16_2_wrn40_2.yaml", "wrn40_1"),
        ("reskd/cifar100_res110.yaml", "res20-14"),
        ("jointrd/imagenet_plain50.yaml", "kd"),
        ("jointrd/cifar10_plain50.yaml", "naive"),
        ("simkd/cifar10_res8x4_res32x4.yaml", "crd"),
    ],
)
def test_a_shipped_row_passes_the_rehearsal(path: str, row: str, tmp_path: Path) -> None:
    rehearse(load(FOLDER / path, (), row), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_row_that_needs_no_other_run_passes_the_rehearsal(path: Path, tmp_path: Path) -> None:
    for recipe in rows_of(path):
        if recipe.student.start is None:
            rehearse(recipe, tmp_path)


@pytest.mark.parametrize("epochs", [30, 60])
def test_a_row_that_stops_early_learns_at_the_rates_that_the_whole_training_has_until_then(epochs: int) -> None:
    path = FOLDER / "simkd/imagenet_res18_res50.yaml"
    recipes = [load(path, (), row) for row in ("at", f"at_{epochs}")]
    whole, part = (recipe.schedule_for(recipe.student.schedule) for recipe in recipes)
    assert part.epochs == epochs
    for epoch in range(epochs):
        rates = [learning_rate(schedule, epoch / schedule.epochs) for schedule in (whole, part)]
        assert rates[0] == rates[1] == pytest.approx(0.1 if epoch < 30 else 0.01)


def test_a_row_is_put_over_the_recipe_by_its_keys(tmp_path: Path) -> None:
    recipe = load(written(tmp_path), (), "twice")
    assert recipe.residual is not None
    assert (recipe.residual.stop.count, recipe.residual.models) == (1, ("resnet8_0.25_a",))
    assert recipe.student.method == {"name": "kd", "tau": 0.9}


def test_settings_go_over_the_row(tmp_path: Path) -> None:
    assert load(written(tmp_path), ("student.method.tau=0.1",), "twice").student.method["tau"] == 0.1


def test_what_was_published_is_no_part_of_the_run(tmp_path: Path) -> None:
    assert load(written(tmp_path)).run_id() == parse(document(), "tiny").run_id()


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        (("seed=7", "runtime.threads=1", "data.root=/tmp", "name=mine"), "kd"),
        (("schedule.epochs=3",), None),
        (("data.name=imagefolder:/somewhere/digits",), "kd"),
        (("data.name=cifar10",), None),
        (("seed=7", "data.size=16"), None),
    ],
)
def test_a_recipe_with_settings_of_its_own_is_no_published_row(
    tmp_path: Path, settings: tuple[str, ...], row: str | None
) -> None:
    published = load(written(tmp_path), settings).published
    assert published is not None
    assert published.row == row


def test_a_scaled_recipe_is_no_published_row(tmp_path: Path) -> None:
    recipe = load(written(tmp_path))
    assert recipe.scaled(1.0).published == recipe.published
    scaled = recipe.scaled(0.5).published
    assert scaled is not None
    assert scaled.taken() is None


@pytest.mark.parametrize(
    ("published", "row", "message"),
    [
        (PUBLISHED, "at", r"recipe\.yaml has no row 'at'; it has alone, kd, twice"),
        (None, "at", "it has none: leave --row out"),
        ("a figure", "at", "it has none: leave --row out"),
        ({**PUBLISHED, "figures": {"at": 70}}, None, "published.rows does not say what at would be"),
        ({**PUBLISHED, "teacher": {"at": 70}}, None, "published.rows does not say what at would be"),
        ({**PUBLISHED, "row": "at"}, None, "published.row 'at' has no figure; there are alone, kd, twice"),
        ({**PUBLISHED, "figures": {"kd": 0.855e3}}, None, r"published\.figures\.kd"),
        ({**PUBLISHED, "figures": {}}, None, r"published\.figures"),
        ({**PUBLISHED, "rows": {**ROWS, "kd": {"name.first": "x"}}}, "kd", "'name' holds a value, not keys"),
        ({**PUBLISHED, "rows": {**ROWS, "kd": {"colour": "red"}}}, "kd", "colour"),
    ],
)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, published: Any, row: str | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(written(tmp_path, published=published), (), row)


def test_a_recipe_may_extend_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / BASES).mkdir()
    written(tmp_path / BASES, "base.yaml", published=None)
    above = {"extends": "bases/base.yaml", "schedule": {"epochs": 7}, "residual": None, "name": "above"}
    (tmp_path / "above.yaml").write_text(yaml.safe_dump(above))
    recipe = load(tmp_path / "above.yaml", ("seed=3",))
    assert (recipe.name, recipe.seed, recipe.residual) == ("above", 3, None)
    assert (recipe.schedule.epochs, recipe.schedule.batch_size) == (7, 32)


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", r"cannot read the recipe .*nowhere\.yaml"),
        (["base.yaml"], r"extends names one other recipe by its path, not \['base.yaml'\]"),
        ("above.yaml", "which extends another: extend that one"),
    ],
)
def test_a_recipe_that_extends_what_it_cannot_is_refused(tmp_path: Path, extends: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(written(tmp_path, "above.yaml", extends=extends))


def test_evaluate_sets_the_published_figure_beside_ones_own(tmp_path: Path) -> None:
    published = {**PUBLISHED, "rows": {"kd": {}}, "figures": {"kd": [85.5, 0.25]}}
    run = train_tiny(tmp_path / "run", published=published, residual=None)
    figures = evaluate(run, quiet=True)
    result = rescade("evaluate", run.folder, "--quiet")
    ours, teachers = figures.test.sums[-1].accuracy, figures.test.teacher
    assert teachers is not None
    line = f"Nobody, table 1: kd 85.50 +- 0.25 %; here {ours:.2%}; its teacher 90.5 %, here {teachers.accuracy:.2%}"
    assert f"published, {line}" in result.stdout.splitlines()
    assert figures.model_dump(mode="json")["published"]["mean"] == 85.5


@pytest.mark.parametrize(("epoch", "said"), [("best", True), ("last", False), (None, False)])
def test_a_figure_of_the_best_epoch_on_the_test_images_is_said_to_be_one(epoch: str | None, *, said: bool) -> None:
    published = parse(document(published={**PUBLISHED, "epoch": epoch}), "tiny").published
    assert published is not None
    row = published.get("kd")
    assert row is not None
    figure = NetworkFigures(name="S0", accuracy=0.8, macs=1)
    figures = Figures(split="test", samples=10, adaptive=figure, sums=(figure,), exits=(1.0,))
    assert ("best on the test images" in published_line(row, figures)) == said


@pytest.mark.parametrize(
    ("path", "epoch"),
    [
        ("crd/res20_res110.yaml", "last"),
        ("simkd/vgg8_vgg13.yaml", "best"),
        ("jointrd/cifar100_plain18.yaml", "best"),
        ("jointrd/imagenet_plain50.yaml", "best"),
        ("data_free/cifar100_cmi.yaml", None),
        ("reskd/cifar100_res110.yaml", None),
    ],
)
def test_shipped_figures_say_which_epoch_they_are_of_where_that_is_known(path: str, epoch: str | None) -> None:
    published = load(FOLDER / path).published
    assert published is not None
    row = published.get(str(published.row))
    assert row is not None
    assert row.epoch == epoch


def test_a_teachers_figure_may_differ_from_row_to_row(tmp_path: Path) -> None:
    published = load(written(tmp_path, published={**PUBLISHED, "teacher": {"kd": 91}})).published
    assert published is not None
    found = [published.get(row) for row in ("kd", "twice")]
    assert [row and row.teacher for row in found] == [91, None]


def test_a_row_that_no_paper_has_is_trained_like_any_other_and_listed_without_a_figure(tmp_path: Path) -> None:
    path = written(tmp_path, published={**PUBLISHED, "figures": {"alone": None, "kd": 85.5}})
    recipe = load(path, (), "alone")
    assert recipe.published is not None
    assert (recipe.teacher, recipe.published.row, recipe.published.taken()) == (None, "alone", None)
    assert recipe_lines("mine", recipe)[-1].strip() == "*alone -, kd 85.50"


def test_plain_cnn_50_on_cifar_10_has_its_rows_and_its_own_normalisation() -> None:
    rows = {row: load(FOLDER / "jointrd/cifar10_plain50.yaml", (), row) for row in ("joint_rd", "naive", "resnet")}
    assert {recipe.data.mean for recipe in rows.values()} == {(0.4914, 0.4822, 0.4465)}
    assert {recipe.data.std for recipe in rows.values()} == {(0.2470, 0.2435, 0.2616)}
    assert rows["joint_rd"].student.method["name"] == "joint_rd"
    assert rows["naive"].student.model == "jointrd_plain_keepds50_cifar"
    assert rows["naive"].teacher is rows["resnet"].teacher is None
    baseline = rows["resnet"].schedule_for(rows["resnet"].student.schedule)
    assert (baseline.epochs, baseline.policy, baseline.lr, baseline.weight_decay) == (300, "cosine", 0.1, 5e-4)


def test_the_readme_counts_the_rows_that_papers_have() -> None:
    recipes = [recipe for path in shipped() if (recipe := load(path)).published is not None]
    figures = [figure for recipe in recipes if recipe.published for figure in recipe.published.figures.values()]
    count = sum(figure is not None for figure in figures)
    assert f"with {count} rows and their figures" in (Path(__file__).parents[2] / "README.md").read_text()


def test_recipes_are_listed_with_their_rows() -> None:
    text = rescade("recipes", "crd/res8*").stdout
    assert text.startswith(
        f"in {FOLDER}\ncrd/res8x4_res32x4.yaml: cifar100, resnet8x4 from resnet32x4\n    CRD benchmark"
    )
    assert "kd 73.33" in text
    assert "*crd 75.51" in text
    assert "simkd" not in text
    listed = json.loads(rescade("recipes", "digits.yaml", "--json").stdout)
    assert list(listed) == ["digits.yaml"]
    assert listed["digits.yaml"]["student"]["model"] == "resnet8_0.125_a"


def test_a_pattern_that_no_recipe_matches_says_so() -> None:
    result = rescade("recipes", "kitchen/*")
    assert result.exit_code == 1
    assert "no recipe's path matches 'kitchen/*'" in result.stderr


def test_train_takes_a_row(tmp_path: Path) -> None:
    settings = ["--set", "schedule.epochs=1", "--quiet"]
    result = rescade("train", written(tmp_path), "--row", "alone", "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["teacher"] is None
