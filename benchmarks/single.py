"""One connection: an image's way over HTTP, beside the same decoding and networks with no server at all.

python benchmarks/single.py bundles/cifar10 IMAGES [--rounds 5] [--seconds 3]

Three things take turns: decoding (Pillow) and the cascade in this process; a server that keeps the processor busy for
as long as that took and answers a constant, which is what the machine takes for waking two processes and carrying bytes
between them; and rescade. The client is a blocking socket.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import encoded, serving
from cascade import bundle
from cascade.combine import first, join
from cascade.exits import at, exits
from cascade.pixels import to_pixels
from server.runtime import OnnxRuntime

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n" + b" " * 300


def bare(runtime: OnnxRuntime, rows: list[bytes], seconds: float) -> list[float]:
    """Seconds an image, decoding and networks, in this process."""
    manifest, rule, times = runtime.manifest, runtime.manifest.exit, list[float]()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        data = rows[len(times) % len(rows)]
        began = time.perf_counter()
        pixels = to_pixels(Image.open(io.BytesIO(data)), manifest.preprocess)[np.newaxis]
        sums = first(runtime.run(0, pixels))
        for stage in range(1, len(manifest.stages)):
            if exits(sums.energies, at(rule.threshold, stage - 1))[0]:
                break
            sums = join(sums.logits, sums.energies, runtime.run(stage, pixels), rule.definition)
        times.append(time.perf_counter() - began)
    return times


def busy(listener: socket.socket, seconds: float) -> None:
    """Take one connection; for each question, be busy for a while and answer the same."""
    connection, _ = listener.accept()
    while connection.recv(65536):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        connection.sendall(ANSWER)


def asked(address: tuple[str, int], rows: list[bytes], seconds: float) -> list[float]:
    """Seconds an image over one connection."""
    questions = [
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n\r\n" % len(data)
        + data
        for data in rows
    ]
    times: list[float] = []
    with socket.create_connection(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            client.sendall(questions[len(times) % len(questions)])
            found = client.recv(65536)
            times.append(time.perf_counter() - began)
            if not found.startswith(b"HTTP/1.1 200"):
                raise SystemExit(found[:200].decode("latin-1"))
    return times


def between(rows: list[bytes], seconds: float, busy_s: float) -> list[float]:
    """Seconds a question to a server that only keeps busy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=busy, args=(listener, busy_s), daemon=True)
        process.start()
        times = asked(listener.getsockname(), rows, seconds)
        process.join()
    return times


def main() -> None:
    """Let the three take turns, and print medians of the rounds' p50."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    rows = encoded(given.images, 256)
    runtime = OnnxRuntime(bundle.read(given.bundle))
    runtime.warm_up()
    found: dict[str, list[float]] = {"bare": [], "busy": [], "rescade": []}
    with serving(given.bundle, "--workers", "2") as (_, url):
        parts = urlsplit(url)
        address: Any = parts.hostname, parts.port
        for _ in range(given.rounds):
            p50 = statistics.median(bare(runtime, rows, given.seconds))
            found["bare"].append(p50)
            found["busy"].append(statistics.median(between(rows, given.seconds, p50)))
            found["rescade"].append(statistics.median(asked(address, rows, given.seconds)))
    base = found["bare"]
    for name, times in found.items():
        ratio = statistics.median(time_ / bare_ for time_, bare_ in zip(times, base, strict=True))
        print(f"{name}: p50 {statistics.median(times) * 1000:.3f} ms, {ratio:.2f} of bare")


if __name__ == "__main__":
    main()
