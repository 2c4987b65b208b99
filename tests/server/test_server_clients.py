"""The Open Inference Protocol as KServe's clients and perf_analyzer speak it, to a server of two workers."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")

from cascade.exits import softmax
from server.runtime import OnnxRuntime
from tests.builders import random_inputs, tiny_bundle, write_tiny_bundle
from tests.server.harness import expected
from tests.server.running import ROOT, started
from tests.serving import free_port

CLIENTS = ROOT / ".clients"  # scripts/clients puts them there, and a file .NAME once they run
ASKS = Path(__file__).with_name("kserve_asks.py")
IMAGES = random_inputs(6)
ANSWERS = expected(OnnxRuntime(tiny_bundle()), IMAGES)
LABELS = [f"class {number}" for number in ANSWERS.classes]


def needs(client: str) -> pytest.MarkDecorator:
    """Skips the test where this client is not installed."""
    return pytest.mark.skipif(not (CLIENTS / f".{client}").is_file(), reason=f"needs {client}: scripts/clients")


class Addresses(NamedTuple):
    """Where a server listens."""

    url: str
    grpc: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    folder = tmp_path_factory.mktemp("clients") / "tiny"
    write_tiny_bundle(folder)
    port = free_port()
    with started(folder, "--workers", "2", "--grpc-port", port) as (_, url):
        yield Addresses(url, f"127.0.0.1:{port}")


@needs("kserve")
def test_kserves_clients_hear_what_replay_says(server: Addresses, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    command = [str(CLIENTS / "bin" / "python"), str(ASKS), *server, str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    heard = json.loads(done.stdout)
    assert (heard["http"]["models"], heard["grpc"]["models"]) == ([True, False], [True])
    assert "there is no model 'nobody'" in heard["http"]["refusal"]
    for side in heard.values():
        assert side["health"] == [True, True]
        for answer in side["answers"]:
            assert np.array_equal(np.array(answer["logits"], np.float32), ANSWERS.logits)
            assert answer["exit_stage"] == ANSWERS.stages.tolist()
            assert answer["energy"] == ANSWERS.energies.tolist()
            assert answer["label"] == LABELS


def raw(value: Any) -> dict[str, str]:
    """A tensor's bytes, as perf_analyzer reads them from a file."""
    return {"b64": base64.b64encode(value if isinstance(value, bytes) else value.tobytes()).decode()}


def outputs(number: int, *, as_bytes: bool) -> dict[str, Any]:
    """What must be answered to one image.

    Numbers that come as JSON are given as JSON: perf_analyzer's parser rounds doubles in its own way, both alike.
    """
    label = LABELS[number].encode()
    tensors = {
        "logits": ANSWERS.logits[number],
        "probabilities": softmax(ANSWERS.logits[[number]])[0],
        "exit_stage": ANSWERS.stages[[number]].astype(np.int32),
        "energy": ANSWERS.energies[[number]],
    }
    if as_bytes:
        parts = {name: raw(tensor) for name, tensor in tensors.items()}
        return {**parts, "label": raw(len(label).to_bytes(4, "little") + label)}
    return {**{name: tensor.tolist() for name, tensor in tensors.items()}, "label": [label.decode()]}


def perf_analyzer(
    server: Addresses, options: Sequence[str], folder: Path, wrong: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Ask for pairs of images over two connections; it compares every answer with replay's.

    Windows end with a number of requests and any two are alike enough, so that no clock decides the outcome.

    Args:
        server: that is asked.
        options: protocol and form.
        folder: takes images and answers.
        wrong: an output for which each image is to have its neighbour's answer.
    """
    wanted = [outputs(number, as_bytes="--output-tensor-format=json" not in options) for number in range(len(IMAGES))]
    if wrong is not None:
        others = [tensors[wrong] for tensors in wanted]
        for number, tensors in enumerate(wanted):
            tensors[wrong] = others[number - 1]
    data = {"data": [{"image": raw(image)} for image in IMAGES], "validation_data": wanted}
    (folder / "data.json").write_text(json.dumps(data))
    address = server.grpc if "grpc" in options else server.url.removeprefix("http://")
    load = ["-b", "2", "--concurrency-range", "2", "--input-data", str(folder / "data.json")]
    windows = ["--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "1000"]
    command = [str(CLIENTS / "perf_analyzer"), "-m", "tiny", "-u", address, *options, *load, *windows]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


FORMS = pytest.mark.parametrize(
    "options",
    [[], ["--input-tensor-format=json", "--output-tensor-format=json"], ["-i", "grpc"]],
    ids=["binary", "JSON", "gRPC"],
)


@needs("perf_analyzer")
@FORMS
def test_perf_analyzer_measures_and_hears_what_replay_says(
    server: Addresses, options: list[str], tmp_path: Path
) -> None:
    done = perf_analyzer(server, options, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(re.findall(r"^ *(Throughput|Inference count|Execution count): ([\d.]+)", done.stdout, re.MULTILINE))
    assert float(said["Throughput"]) > 0
    assert int(said["Inference count"]) >= int(said["Execution count"]) > 0
    breakdown = re.search(r"overhead \d+ usec \+ queue \d+ usec \+ .*compute infer (\d+) usec", done.stdout)
    assert breakdown is not None, done.stdout
    assert int(breakdown[1]) > 0


@needs("perf_analyzer")
@FORMS
@pytest.mark.parametrize("wrong", ["logits", "label"])
def test_perf_analyzer_would_notice_another_answer(
    server: Addresses, options: list[str], tmp_path: Path, wrong: str
) -> None:
    done = perf_analyzer(server, options, tmp_path, wrong)
    assert done.returncode != 0
    assert "doesn't match expected" in done.stdout + done.stderr
