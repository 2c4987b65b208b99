"""Requests of many encoded images over the Open Inference Protocol's binary tensors, against the limit.

python benchmarks/batches.py bundles/cifar10 IMAGES [--size 32] [--rounds 3] [--seconds 4]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import struct
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import encoded, limit, serving
from cascade import bundle


def request(images: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """A body and its headers: one BYTES tensor in, label and exit stage out, all of it binary."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "exit_stage")]
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return head + data, headers


def ask(url: str, name: str, rows: list[bytes], size: int, seconds: float, connections: int) -> float:
    """Images a second over some connections, each with one request in hand."""
    prepared = [request(rows[start : start + size]) for start in range(0, len(rows) - size + 1, size)]
    counts = [0] * connections
    stop = time.monotonic() + seconds

    def run(number: int) -> None:
        client = http.client.HTTPConnection(urlsplit(url).netloc)
        turn = number
        while time.monotonic() < stop:
            body, headers = prepared[turn % len(prepared)]
            client.request("POST", f"/v2/models/{name}/infer", body, headers)
            response = client.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"HTTP {response.status}")
            counts[number] += size
            turn += connections

    threads = [threading.Thread(target=run, args=(number,)) for number in range(connections)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def main() -> None:
    """Print a row a round, and the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--size", type=int, default=32, help="images a request")
    parser.add_argument("--count", type=int, default=512, help="images used")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    rows, name = encoded(given.images, given.count), bundle.read(given.bundle).manifest.name
    ratios = []
    for number in range(given.rounds):
        most = limit(given.bundle, given.images, given.count, given.seconds, given.workers)
        with serving(given.bundle, "--workers", str(given.workers)) as (_, url):
            ask(url, name, rows, given.size, 0.5, given.connections)
            ours = ask(url, name, rows, given.size, given.seconds, given.connections)
        ratios.append(ours / most)
        print(f"round {number + 1}: limit {most:.0f} images/s, served {ours:.0f} images/s, {ours / most:.3f} of it")
    print(f"median: {statistics.median(ratios):.3f} of the limit")


if __name__ == "__main__":
    main()
