"""What `scripts/demo` does once the environment stands: the README's five commands, then 200 questions and a table."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESCADE = [sys.executable, "-m", "rescade"]
IMAGES = 200
FULL = 1e9
console = Console(stderr=True)


@dataclass(frozen=True)
class Question:
    """One held-out image as PNG, its class name, and whether the teacher gets it right."""

    png: bytes
    label: str
    teacher_right: bool


def main() -> None:
    """Run the demo; exit 1 with one clear line where a part of it fails."""
    options = parse()
    recipe = ROOT / "training" / "recipes" / ("digits.yaml" if options.data == "digits" else "cifar10_cpu.yaml")
    settings = list(options.settings)
    if options.data != "digits":
        settings.append(f"data.name={options.data}")
    name = options.data.partition(":")[0]
    run, bundle = ROOT / "runs" / f"demo-{name}", ROOT / "runs" / f"demo-{name}-bundle"
    check_port(options.port)
    put = [part for setting in settings for part in ("--set", setting)]
    rescade("train", str(recipe), "--out", str(run), *put)
    rescade("evaluate", str(run), "--quiet", "--json")
    rescade("export", str(run), "--out", str(bundle), "--name", name)
    rescade("verify", str(bundle))
    questions, sample = held_out(run)
    with serving(bundle, options.port) as url:
        ask_all(url, questions)
        address = f"{url}/predict"
        console.print("\nTry it:")
        print(f"curl -s -H 'Content-Type: image/png' --data-binary @{sample} '{address}?top_k=3'")
        if not options.once:
            console.print("\nThe server stays up until Ctrl-C.")
            signal.pause()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Train, export, serve and ask a cascade.")
    parser.add_argument("--once", action="store_true", help="stop after the table")
    parser.add_argument("--port", type=int, default=8000, help="of the server on 127.0.0.1; default 8000")
    parser.add_argument("--data", default="digits", help="digits (default), cifar10, or imagefolder:PATH")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for the recipe"
    )
    options = parser.parse_args()
    kind, _, path = options.data.partition(":")
    if not (options.data in ("digits", "cifar10") or (kind == "imagefolder" and path)):
        parser.error(f"--data is digits, cifar10 or imagefolder:PATH, not {options.data}")
    if kind == "imagefolder":
        options.data = f"imagefolder:{Path(path).expanduser().resolve()}"
    return options


def check_port(port: int) -> None:
    """Fail before the training, not after it, where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"port {port} of 127.0.0.1 cannot be had ({error.strerror}): name another with --port")


def rescade(*arguments: str) -> None:
    """Show a command and run it."""
    console.print(f"[bold]$ rescade {' '.join(arguments)}[/bold]", highlight=False, soft_wrap=True)
    quiet = subprocess.DEVNULL if "--json" in arguments else None
    if code := subprocess.run([*RESCADE, *arguments], cwd=ROOT, stdout=quiet, check=False).returncode:
        sys.exit(code)


def held_out(run: Path) -> tuple[list[Question], Path]:
    """200 images of the test split, spread evenly over it, and the path of one of them as a file."""
    from training.data import load  # torch, once training is over
    from training.run import open_run

    data = load(open_run(run).recipe.data, quiet=True)
    with np.load(run / "logits" / "test.npz") as stored:
        right = stored["teacher"].argmax(1) == stored["labels"]
    questions = []
    for place in np.linspace(0, len(data.test) - 1, min(IMAGES, len(data.test))).astype(int):
        buffer = io.BytesIO()
        Image.fromarray(data.test.images[place].numpy()).save(buffer, "PNG")
        label = data.classes[int(data.test.labels[place])]
        questions.append(Question(buffer.getvalue(), label, bool(right[place])))
    sample = run / "sample.png"
    sample.write_bytes(questions[0].png)
    return questions, sample


@contextlib.contextmanager
def serving(bundle: Path, port: int) -> Iterator[str]:
    """`rescade serve`, up to the end of the block."""
    command = ["serve", str(bundle), "--host", "127.0.0.1", "--port", str(port)]
    console.print(f"[bold]$ rescade {' '.join(command)}[/bold]", highlight=False, soft_wrap=True)
    log = bundle.with_name(f"{bundle.name}.log").open("wb")
    process = subprocess.Popen([*RESCADE, *command], cwd=ROOT, stderr=log, stdout=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, Path(log.name))
        yield url
    except KeyboardInterrupt:
        pass
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server has warmed up; exit 1 with its own words where it does not."""
    for _ in range(300):
        if process.poll() is not None:
            sys.exit(f"the server stopped: {log.read_text().strip()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    sys.exit(f"the server was not ready after 30 s; its log is {log}")


def ask_all(url: str, questions: Sequence[Question]) -> None:
    """Post every image to S0, to the full cascade and to the adaptive one, and print the table."""
    bundle = httpx.get(f"{url}/bundle").json()
    costs = np.cumsum([stage["macs"] for stage in bundle["stages"]])
    table = Table("", "accuracy", "mean MACs", "of full", "p50", "p99", "exits")
    ways: list[tuple[str, dict[str, float]]] = [
        ("S0", {"max_stage": 0}),
        ("full cascade", {"threshold": FULL}),
        ("adaptive", {}),
    ]
    for name, query in ways:
        answers, seconds = ask(url, questions, query, name)
        stages = np.array([answer["stage"] for answer in answers])
        right = np.mean([a["label"] == q.label for a, q in zip(answers, questions, strict=True)])
        shares = np.bincount(stages, minlength=len(costs)) / len(stages)
        row = (
            f"{right:.1%}",
            *cost(costs[stages].mean(), costs[-1]),
            *(f"{1e3 * np.quantile(seconds, q):.1f} ms" for q in (0.5, 0.99)),
        )
        table.add_row(name, *row, " ".join(f"S{stage} {share:.0%}" for stage, share in enumerate(shares)))
    teacher = bundle["test"]["teacher"]
    share = np.mean([question.teacher_right for question in questions])
    table.add_row("teacher, not served", f"{share:.1%}", *cost(teacher["macs"], costs[-1]), "", "", "")
    table.title = f"{len(questions)} held-out images, posted to {url}/predict one after another"
    Console().print(table)


def cost(macs: float, full: float) -> tuple[str, str]:
    """MACs, and as a share of the full cascade's."""
    return f"{macs / 1e6:.2f} M", f"{macs / full:.0%}"


def ask(
    url: str, questions: Sequence[Question], query: dict[str, float], name: str
) -> tuple[list[dict[str, Any]], list[float]]:
    """Post each image; its prediction and the seconds it took."""
    answers, seconds = [], []
    with httpx.Client(base_url=url, headers={"Content-Type": "image/png"}) as client:
        for question in track(questions, f"asking, {name}", console=console, transient=True):
            started = time.perf_counter()
            response = client.post("/predict", params=query, content=question.png)
            seconds.append(time.perf_counter() - started)
            response.raise_for_status()
            answers.append(response.json()["predictions"][0])
    return answers, seconds


if __name__ == "__main__":
    main()
