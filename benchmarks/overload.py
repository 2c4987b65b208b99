"""Three times what the server can do, for a minute: what is answered, what is refused and how soon, and what is left.

python benchmarks/overload.py BUNDLE IMAGES [--times 3] [--seconds 60] [--deadline-ms 250] [--workers 1]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import bench, resident_mb, serving


def main() -> None:
    """Saturate, overload, look at how soon it is well again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--times", type=float, default=3.0, help="load, as a multiple of the saturated throughput")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline-ms", type=float, default=250.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1024)
    given = parser.parse_args()
    with serving(given.bundle, "--workers", str(given.workers)) as (process, url):
        bench(url, given.images, "--concurrency", "1", "--duration", "1")
        before: Any = bench(url, given.images, "--concurrency", "1", "--duration", "2")
        full: Any = bench(url, given.images, "--concurrency", str(32 * given.workers), "--duration", "5")
        rate = given.times * full["throughput_per_s"]
        memory: list[float] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1):
                memory.append(resident_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        open_loop = ["--rate", str(rate), "--connections", str(given.connections), "--duration", str(given.seconds)]
        run: Any = bench(url, given.images, *open_loop, "--deadline", str(given.deadline_ms))
        over.set()
        watcher.join()
        time.sleep(1)
        after: Any = bench(url, given.images, "--concurrency", "1", "--duration", "1")
    told, good = run["latency_ms"], run["throughput_per_s"] / full["throughput_per_s"]
    third = max(1, len(memory) // 3)
    for line in (
        f"saturated: {full['throughput_per_s']:.0f} images/s",
        f"p50 of one connection before: {before['latency_ms']['p50']:.2f} ms",
        f"offered: {rate:.0f} a second for {given.seconds:.0f} s with a deadline of {given.deadline_ms:.0f} ms",
        f"answered: {run['throughput_per_s']:.0f} images/s, {good:.2f} of saturated",
        f"their latency: p50 {told['p50']:.0f} ms, p99 {told['p99']:.0f} ms",
        f"not answered: {run['errors']}",
        f"refusals: p50 {run['refusal_ms']['p50']:.2f} ms, p99 {run['refusal_ms']['p99']:.1f} ms",
        f"waited at the client: p50 {run['wait_ms']['p50']:.1f} ms, p99 {run['wait_ms']['p99']:.1f} ms; "
        f"it used {run['generator_cpu_share']:.0%} of a core",
        f"resident, MB: at most {max(memory[:third]):.0f} in the first third, {max(memory[-third:]):.0f} in the last",
        f"p50 of one connection a second later: {after['latency_ms']['p50']:.2f} ms",
    ):
        print(line)


if __name__ == "__main__":
    main()
