"""What the benchmarks share: a server in processes of its own, images, and the machine's limit without a server."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cascade import bundle
from cascade.combine import first, join
from cascade.exits import Floats, exits
from cascade.feeds import feeds
from cascade.pixels import Pixels, to_pixels


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve a bundle on a free port until the block ends; gives the parent process and the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", str(folder), "--port", str(port), "--log-level", "error", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            while not _ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode} before it was ready")
                time.sleep(0.02)
            time.sleep(0.5)  # the other workers
            yield process, url
        finally:
            process.terminate()
            process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def encoded(folder: Path, count: int) -> list[bytes]:
    """The first images of a folder, as they lie there."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))[:count]]


def limit(folder: Path, images: Path, count: int, seconds: float, processes: int) -> float:
    """Images a second with no server: Pillow's decoding and the cascade in batches of eight, in plain processes."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_warm, [(folder, images, count)] * processes, chunksize=1)
        return sum(pool.starmap(_unserved, [(folder, images, count, seconds)] * processes, chunksize=1))


def _warm(folder: Path, images: Path, count: int) -> None:
    _unserved(folder, images, count, 0.5)


def _unserved(folder: Path, images: Path, count: int, seconds: float) -> float:
    import io

    import onnxruntime

    read, rows = bundle.read(folder), encoded(images, count)
    manifest = read.manifest
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]) for model in read.models]
    outputs, takes = [[stage.output.name] for stage in manifest.stages], [stage.input for stage in manifest.stages]

    def run(number: int, pixels: Pixels) -> Floats:
        given = feeds(pixels, takes[number], manifest.preprocess)
        logits: Floats = sessions[number].run(outputs[number], given)[0]
        return logits

    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        chosen = [rows[(done + place) % len(rows)] for place in range(8)]
        pixels = np.stack([to_pixels(Image.open(io.BytesIO(data)), manifest.preprocess) for data in chosen])
        logits, energies, _ = first(run(0, pixels))
        going = np.arange(len(pixels))
        for number in range(1, len(sessions)):
            going = going[~exits(energies[going], manifest.exit.threshold)]
            if not going.size:
                break
            output = run(number, pixels[going])
            logits[going], energies[going], _ = join(logits[going], energies[going], output, manifest.exit.definition)
        done += len(chosen)
    return done / spent


def bench(url: str, images: Path, *options: str) -> dict[str, object]:
    """The first run of a report of `rescade bench`."""
    command = [
        sys.executable,
        "-m",
        "rescade",
        "bench",
        url,
        "--images",
        str(images),
        "--quiet",
        "--json",
        "-",
        *options,
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    run: dict[str, object] = report["runs"][0]
    return run


def resident_mb(pid: int) -> float:
    """Memory of a process and its children, each resident page counted once a process, in MB."""
    found = 0
    for each in (pid, *_children(pid)):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                found += int(line.split()[1])
    return found / 1024


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
