"""How long until there is something to see?

    python benchmarks/startup.py [--rounds 5] [-o benchmarks/results/startup.json]

Every measurement is a fresh process, and they take turns. Each has run once before, so that the disk is warm. The time
of commands is that of the whole process, from its start to its end; that of statements was taken in the process, and
Python's own start is not in it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from bench_tools import (
    KERAS,
    described,
    markdown,
    parser,
    printed,
    span,
    spread,
    target,
    targets_table,
    turns,
    workplace,
    write,
)


@dataclass(frozen=True)
class Measure:
    title: str
    statement: str = ""  # its time in the process, after `before`
    before: str = ""
    command: str = ""  # or that of `oip` and these words
    asked: float | None = None  # at most so many seconds


MEASURES = {
    "torch": Measure("`import torch`", "import torch"),
    "package": Measure("`import oip_torch`", "import oip_torch"),
    "package-after-torch": Measure(
        "`import oip_torch` after `import torch`", "import oip_torch", before="import torch", asked=0.2
    ),
    "load": Measure("`import oip_torch`, `oip.load(FILE)`", "import oip_torch as oip; oip.load({network!r})"),
    "load-after-torch": Measure(
        "the same after `import torch`", "import oip_torch as oip; oip.load({network!r})", before="import torch"
    ),
    "layers": Measure("`oip layers FILE`", command="layers {network}", asked=4),
    "first": Measure(
        "`oip ascend FILE Conv2D_3 17`, pictures included",
        command="ascend {network} Conv2D_3 17 --quiet --device cpu -o {folder}/oips",
    ),
    "convert": Measure(
        "`oip convert MODEL` of the shipped network",
        command="convert {keras} -o {folder}/again.onnx --quiet --device cpu",
        asked=25,
    ),
}


def seconds(measure: Measure, **names: str) -> float:
    """One turn."""
    if measure.command:
        words = [word.format(**names) for word in measure.command.split()]
        began = time.perf_counter()
        printed([sys.executable, "-m", "oip_torch", *words])
        return time.perf_counter() - began
    lines = (
        *(measure.before, "import time", "began = time.perf_counter()"),
        *(measure.statement.format(**names), "print(time.perf_counter() - began)"),
    )
    return float(printed([sys.executable, "-c", "\n".join(lines)]))


def text(result: dict[str, Any]) -> str:
    rows = [[row["title"], span(row["seconds"])] for row in result["measures"].values()]
    return "\n\n".join(
        [
            described(),
            f"Seconds, medians of {result['rounds']} rounds (least to most):",
            markdown(["", "s"], rows),
            targets_table(result["targets"]),
        ]
    )


def main() -> None:
    made = parser(__doc__, "startup", rounds=5)
    made.add_argument("--only", nargs="*", choices=MEASURES, default=list(MEASURES))
    options = made.parse_args()
    found: dict[str, list[float]] = {name: [] for name in MEASURES if name in options.only}
    with workplace(options.network) as (folder, network):
        names = {"network": str(network), "folder": str(folder), "keras": str(KERAS)}
        for name in found:
            seconds(MEASURES[name], **names)
        for name in turns(list(found), options.rounds):
            found[name].append(seconds(MEASURES[name], **names))
    rows = {
        name: {"title": MEASURES[name].title, "seconds": spread(times), "asked": MEASURES[name].asked}
        for name, times in found.items()
    }
    targets = [target(row["title"], row["asked"], row["seconds"]) for row in rows.values() if row["asked"] is not None]
    result = {"rounds": options.rounds, "measures": rows, "targets": targets}
    write(result, options.output, text(result))


if __name__ == "__main__":
    main()
