"""Where is the bottleneck of an atlas that many Ray workers make: at the workers, or at the one process that writes?

    python scripts/simulate_scale.py [--unit 20 --rows 32 …]

A simulation of events. Each worker takes a part, computes for about so long, and its result waits until the one writer
has fetched it over its line, written it into the store, and handed the next part out; a quarter more parts are handed
out than there are workers, as `atlas.ray_engine` does. Times come as options, and are to be measured
(benchmarks/atlas.py); they vary by a tenth around what is given, from a seeded generator.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

WORKERS = (10, 100, 1000)


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one part takes: seconds of a worker, and of the writer; and how many images it has."""

    compute: float
    fetch: float
    write: float
    hand_out: float

    @property
    def writer(self) -> float:
        """Seconds of the writer for each part."""
        return self.fetch + self.write + self.hand_out


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of it: parts per second, and the shares of time in which workers compute and the writer is busy."""

    rate: float
    computing: float
    writing: float


def simulate(times: Times, workers: int, rounds: int = 20, seed: int = 0) -> Found:
    """So many parts for each worker, on average. The first two of each are not counted; the end is, when some idle."""
    rng = np.random.default_rng(seed)
    total, first = workers * rounds, workers * 2
    queue, out = 0, 0  # handed out and waiting for a worker; handed out and not written
    free, ready, done, handed = workers, deque[float](), 0, 0
    most = workers + workers // 4 + 1
    events: list[tuple[float, str]] = [(0.0, "writer")]
    now, began, busy, computed, resting = 0.0, 0.0, 0.0, 0.0, False

    def about(seconds: float) -> float:
        return float(seconds * np.clip(rng.normal(1, 0.1), 0.5, 1.5))

    while done < total:
        now, what = heapq.heappop(events)
        if what == "computed":
            free += 1
            ready.append(now)
            if resting:
                resting = False
                heapq.heappush(events, (now, "writer"))
        elif what == "handed out":
            queue += 1
        elif out < most and handed < total:  # the writer: first that nobody waits for work, then results
            out, handed = out + 1, handed + 1
            seconds = about(times.hand_out)
            busy += seconds
            heapq.heappush(events, (now + seconds, "handed out"))
            heapq.heappush(events, (now + seconds, "writer"))
        elif ready:
            ready.popleft()
            seconds = about(times.fetch + times.write)
            out, done, busy = out - 1, done + 1, busy + seconds
            if done == first:
                began, busy, computed = now, 0.0, 0.0
            heapq.heappush(events, (now + seconds, "writer"))
        else:
            resting = True
        while free and queue:
            free, queue = free - 1, queue - 1
            seconds = about(times.compute)
            computed += seconds
            heapq.heappush(events, (now + seconds, "computed"))
    span = now - began
    return Found(rate=(total - first) / span, computing=min(1.0, computed / span / workers), writing=busy / span)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=20.0, help="seconds that a worker computes for a part")
    parser.add_argument("--cells", type=float, default=1.0, help="cells of a part, each written by itself")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of a cell's result")
    parser.add_argument("--line", type=float, default=100.0, help="MB per second that the writer's line carries")
    parser.add_argument("--write", type=float, default=0.1, help="seconds to write a cell into a local folder")
    parser.add_argument("--trips", type=int, default=46, help="to the object store for a part, one after the other")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each of them takes")
    parser.add_argument("--hand-out", type=float, default=0.002, help="seconds of the writer to hand a part out")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    options = parser.parse_args()
    fetch = options.cells * options.megabytes / options.line
    write = options.cells * options.write
    stores = {"a local folder": write, "an object store": write + options.trips * options.latency}
    enough = []
    print("| written into | workers | parts per s | workers compute | the writer is busy | bottleneck |")
    print("|---|---|---|---|---|---|")
    for store, seconds in stores.items():
        times = Times(compute=options.unit, fetch=fetch, write=seconds, hand_out=options.hand_out)
        for workers in options.workers:
            found = simulate(times, workers)
            bottleneck = "the writer" if found.writing > 0.95 else "the workers"
            print(
                f"| {store} | {workers:,} | {found.rate:.3g} | {found.computing:.0%} | {found.writing:.0%} "
                f"| {bottleneck} |"
            )
        enough.append(f"Into {store} one writer is enough for {times.compute / times.writer:,.0f} workers.")
    print("", *enough, sep="\n")


if __name__ == "__main__":
    main()
