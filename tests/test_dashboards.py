"""Dashboard, alerts and README speak of metrics that the server exposes, and what compose mounts is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

from cascade import bundle
from server.runtime import OnnxRuntime
from tests.builders import encoded, random_photo
from tests.server.harness import serving

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/rescade.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [path for path in sorted(DOCKER.rglob("*")) if path.suffix in {".yaml", ".yml", ".json"}]

NAME = re.compile(r"\brescade_\w+")
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
SELECTOR = re.compile(r"\b(rescade_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
ROW = re.compile(r"^\| `(rescade_\w+)` \|([^|]*)\|", re.MULTILINE)
SCRAPED = {"job", "instance", "le"}  # labels that Prometheus or a histogram adds


class Loader(yaml.SafeLoader):
    """YAML as Compose reads it, with its own tags."""


Loader.add_constructor("!reset", lambda loader, node: None)


def load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)


COMPOSE = load(DOCKER / "compose.yaml")["services"]
ALERTS = [rule for group in load(DOCKER / "alerts.yml")["groups"] for rule in group["rules"]]
EXPRESSIONS = {
    f"{panel['id']} {panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
EXPRESSIONS |= {rule["alert"]: rule["expr"] for rule in ALERTS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def exposed() -> dict[str, set[str]]:
    """Labels by the name of every series, and of every family, after some requests to the digits."""
    photo, png = encoded(random_photo()), {"Content-Type": "image/png"}
    async with serving(OnnxRuntime(bundle.read(ROOT / "bundles" / "digits"))) as client:
        for threshold in ("0", "1"):
            answer = await client.post(f"/predict?threshold={threshold}", content=photo, headers=png)
            assert answer.status_code == 200
        await client.post("/predict", content=b"junk", headers=png)
        text = (await client.get("/metrics")).text
    found: dict[str, set[str]] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
            found.setdefault(family.name, set()).update(set(sample.labels) - {"le"})
    return {name: labels for name, labels in found.items() if name.startswith("rescade_")}


def brackets(expression: str) -> Iterator[str]:
    """What is opened and not closed, or closed and not opened, outside quotes."""
    pairs, waiting = {")": "(", "]": "[", "}": "{"}, []
    for sign in TEXT.sub("", expression):
        if sign in pairs.values():
            waiting.append(sign)
        elif sign in pairs and (not waiting or waiting.pop() != pairs[sign]):
            yield sign
    yield from waiting


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DOCKER)))
def test_every_file_can_be_read(path: Path) -> None:
    assert load(path)


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_bracket_is_closed(place: str) -> None:
    assert list(brackets(EXPRESSIONS[place])) == []
    assert EXPRESSIONS[place].count('"') % 2 == 0


def test_an_open_bracket_would_be_found() -> None:
    assert list(brackets('sum(rate(x{a=")"}[5m])')) == ["("]
    assert list(brackets("x)")) == [")"]


async def test_every_series_and_label_that_is_asked_for_is_exposed(exposed: dict[str, set[str]]) -> None:
    for place, expression in EXPRESSIONS.items():
        names = set(NAME.findall(expression))
        assert names <= set(exposed), place
        for name, selector in SELECTOR.findall(expression):
            assert set(LABEL.findall(TEXT.sub("", selector))) <= exposed[name] | SCRAPED, place
        known = SCRAPED.union(*(exposed[name] for name in names))
        asked = {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")}
        assert asked <= known, place


async def test_the_table_of_the_readme_is_what_is_exposed(exposed: dict[str, set[str]]) -> None:
    table = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(README)}
    series = {name: labels for name, labels in exposed.items() if not re.search(r"_(bucket|sum|count|created)$", name)}
    counted = {name.removesuffix("_total") for name in series if name.endswith("_total")}
    assert table == {name: labels for name, labels in series.items() if name not in counted}


async def test_the_readme_names_no_other_metric(exposed: dict[str, set[str]]) -> None:
    assert set(NAME.findall(README)) <= set(exposed)


async def test_every_variable_is_defined_and_lists_a_label_that_is_exposed(exposed: dict[str, set[str]]) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = {name for expression in EXPRESSIONS.values() for name in re.findall(r"\$(\w+)", expression)}
    assert used == {*variables, "__rate_interval"}
    for variable in variables.values():
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert found is not None
        assert found[2] in exposed[found[1]]


def test_every_panel_asks_the_data_source_that_is_provisioned() -> None:
    (source,) = load(DOCKER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for part in [*DASHBOARD["panels"], *targets, *DASHBOARD["templating"]["list"]]:
        assert part["datasource"] == wanted
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert COMPOSE[host]["ports"][0].endswith(f":{port}")


def test_panels_have_numbers_of_their_own_and_lie_side_by_side() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    squares = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(squares) == len(set(squares))
    assert max(x for x, _ in squares) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def mounts(service: str) -> dict[str, Path]:
    """By where they lie inside: what is mounted, with variables at their defaults."""
    lines = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", line) for line in COMPOSE[service].get("volumes", [])]
    return {inside: DOCKER / outside for outside, inside, _ in (line.split(":") for line in lines)}


@pytest.mark.parametrize("service", COMPOSE)
def test_compose_mounts_what_is_there_and_publishes_to_this_machine_alone(service: str) -> None:
    assert [path for path in mounts(service).values() if not path.exists()] == []
    for port in COMPOSE[service]["ports"]:
        assert "127.0.0.1:" in port
    assert "build" in COMPOSE[service] or re.search(r":v?\d+\.\d+\.\d+$", COMPOSE[service]["image"])


def test_what_prometheus_and_grafana_are_told_to_read_is_mounted() -> None:
    prometheus = load(DOCKER / "prometheus.yml")
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    (provider,) = load(DOCKER / "grafana/provisioning/dashboards/rescade.yaml")["providers"]
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert set(prometheus["rule_files"]) <= set(mounts("prometheus"))
    assert COMPOSE["server"]["ports"][0].endswith(target.removeprefix("server"))
    assert (mounts("grafana")[provider["options"]["path"]] / Path(home).name).is_file()
    assert Path(home).parent == Path(provider["options"]["path"])


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    jobs = {job["job_name"] for job in load(DOCKER / "prometheus.yml")["scrape_configs"]}
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert set(re.findall(r'job="(\w+)"', rule["expr"])) <= jobs
