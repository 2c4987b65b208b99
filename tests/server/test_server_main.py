"""`rescade serve` as a person or a container starts it: in a process of its own, with a real bundle."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from server import __main__ as command_line
from server.costs import Costs
from server.runtime import OnnxRuntime
from server.settings import ServerSettings
from tests.builders import encoded, random_photo, tiny_bundle, write_tiny_bundle
from tests.server.running import children, metrics, started, wait_for

ROOT = Path(__file__).parents[2]
PNG = {"Content-Type": "image/png"}
PHOTO = encoded(random_photo())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_it_serves_a_bundle_answers_and_ends_well_on_sigterm(bundle: Path) -> None:
    with started(bundle, "--threshold", "0.7") as (process, url):
        ready = httpx.get(f"{url}/health/ready")
        answer = httpx.post(f"{url}/predict", content=PHOTO, headers=PNG).json()
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=20)
    assert (ready.status_code, answer["threshold"], process.returncode, output) == (200, 0.7, 0, "")
    assert [line for line in log.splitlines() if not line.startswith('{"time"')] == []


def test_two_workers_answer_count_together_and_replace_each_other(bundle: Path) -> None:
    with started(bundle, "--workers", "2") as (process, url):
        for _ in range(20):  # a connection each, so that both workers get some
            assert httpx.post(f"{url}/predict", content=PHOTO, headers=PNG).status_code == 200
        counted = '{method="POST",path="/predict",status="200"} 20.0'
        wait_for(lambda: all(f"rescade_requests_total{counted}" in metrics(url) for _ in range(4)))
        os.kill(children(process.pid)[0], signal.SIGKILL)
        statuses = {httpx.get(f"{url}/health/live").status_code for _ in range(5)}
        wait_for(lambda: "rescade_requests_in_flight 1.0" in metrics(url))
        text = metrics(url)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert statuses == {200}
    assert f"rescade_requests_total{counted}" in text
    assert process.returncode == 0
    assert '"worker died"' in log


def refused(*arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a server that does not start."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_model_file_is_refused_in_one_line(bundle: Path, workers: int) -> None:
    (bundle / "stage1.onnx").write_bytes(b"changed")
    code, said = refused(bundle, "--port", "0", "--workers", workers)
    assert code == 1
    assert re.fullmatch(r"rescade: cannot serve \S+: stages\[1\].sha256: stage1.onnx has digest .*\n", said)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_that_is_not_there_is_refused_in_one_line(bundle: Path, workers: int) -> None:
    code, said = refused(bundle, "--port", "0", "--workers", workers, "--device", "cuda:99")
    assert code == 1
    assert re.fullmatch(r"rescade: cannot serve \S+: .*GPU.*\n", said)


def test_serving_never_imports_torch(bundle: Path) -> None:
    code = (
        "import sys; import server.__main__, server.app, server.process, server.workers; "
        "from server.settings import ServerSettings; from server.library import Library; "
        f"s = ServerSettings(bundle={str(bundle)!r}); server.app.open_runtimes(s, Library(s.bundle)); "
        "print(sorted({'torch', 'torchvision', 'onnx', 'sklearn', 'training', 'export'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_from_within_python_too(bundle: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(click, "echo", hear)
    arguments = [str(bundle), "--port", "0", "--workers", str(workers)]
    assert command_line.serve.main(arguments, standalone_mode=False) is None
    assert [line.rpartition(":")[0] for line in said] == [f"rescade serves {bundle} at http://127.0.0.1"]


class BrokenRuntime(OnnxRuntime):
    """Cannot be warmed."""

    def warm_up(self) -> Costs:
        raise MemoryError("the GPU is full")


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_warm_up_that_fails_is_told_and_ends_with_1(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app.open_runtime", lambda settings, bundle: BrokenRuntime(tiny_bundle()))
    result = CliRunner().invoke(command_line.serve, [str(bundle), "--port", "0"])
    assert result.exit_code == 1
    assert "cannot serve" in result.output
    assert "the GPU is full" in result.output


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_port_that_is_taken_is_told_and_ends_with_1(bundle: Path) -> None:
    result = CliRunner().invoke(command_line.serve, [str(bundle), "--host", "192.0.2.1", "--port", "80"])
    assert result.exit_code == 1
    assert result.output.startswith(f"rescade: cannot serve {bundle}: ")


WRONG = {
    "nothing": ([], "BUNDLE (RESCADE_BUNDLE): Field required"),
    "a word for a number": (["b", "--port", "http"], "--port (RESCADE_PORT): Input should be a valid integer"),
    "an option we do not have": (["b", "--prot", "1"], "No such option"),
    "values that do not fit": (["b", "--max-images", "5000"], "max_images 5000 is more than max_queue 1024"),
    "a device nobody has": (["b", "--device", "tpu"], "--device (RESCADE_DEVICE): String should match"),
}


@pytest.mark.parametrize("case", WRONG)
def test_asked_wrongly_it_ends_with_2_and_says_what_is_wrong(case: str) -> None:
    arguments, reason = WRONG[case]
    result = CliRunner().invoke(command_line.serve, arguments)
    assert result.exit_code == 2
    assert reason in result.output


def test_a_misspelt_variable_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCADE_PROT", "1")
    result = CliRunner().invoke(command_line.serve, ["b"])
    assert result.exit_code == 2
    assert "unknown environment variable RESCADE_PROT" in result.output


def test_the_package_itself_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server.__main__")
    monkeypatch.setattr(sys, "argv", ["server", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("server", run_name="__main__")
    assert ended.value.code == 0


def test_every_setting_is_an_option_with_its_default() -> None:
    shown = CliRunner().invoke(command_line.serve, ["--help"]).output
    for name in set(ServerSettings.model_fields) - {"bundle"}:
        assert f"--{name.replace('_', '-')}" in shown
    assert "[default: 127.0.0.1]" in shown
