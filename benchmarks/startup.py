"""How long until there is something to see?

    python benchmarks/startup.py [--rounds 5] [-o benchmarks/results/startup.json]

Every measurement is a fresh process, and they take turns. Each has run once before, so that the disk is warm. The time
of commands is that of the whole process, from its start to its end; that of statements was taken in the process, and
Python's own start is not in it.
"""

from __future__ import annotations

import sys
import timeit

import bench_tools as bench

LOAD = "import oip_torch as oip; oip.load({network!r})"
MEASURES = {  # title; statement, and what is done before it, or the words of a command; at most so many seconds
    "torch": ("`import torch`", "import torch", "pass", None),
    "package": ("`import oip_torch`", "import oip_torch", "pass", None),
    "package-after-torch": ("`import oip_torch` after `import torch`", "import oip_torch", "import torch", 0.2),
    "load": ("`import oip_torch`, `oip.load(FILE)`", LOAD, "pass", None),
    "load-after-torch": ("the same after `import torch`", LOAD, "import torch", None),
    "layers": ("`oip layers FILE`", "layers {network}", None, 4),
    "first": (
        "`oip ascend FILE Conv2D_3 17`, pictures included",
        "ascend {network} Conv2D_3 17 --quiet --device cpu -o {folder}/oips",
        None,
        None,
    ),
    "convert": (
        "`oip convert MODEL` of the shipped network",
        "convert {keras} -o {folder}/again.onnx --quiet --device cpu",
        None,
        25,
    ),
}


def seconds(name: str, **names: str) -> float:
    """One turn."""
    _, work, before, _ = MEASURES[name]
    if before is None:
        command = [sys.executable, "-m", "oip_torch", *(word.format(**names) for word in work.split())]
        return timeit.timeit(lambda: bench.printed(command), number=1)
    call = f"timeit.timeit({work.format(**names)!r}, {f'{bench.WITH_GC}; {before}'!r}, number=1)"
    return float(bench.answer([sys.executable, "-c", f"import timeit; print({call})"]))


def main() -> None:
    made = bench.parser(__doc__, "startup", rounds=5)
    made.add_argument("--only", nargs="*", choices=MEASURES, default=list(MEASURES))
    options = made.parse_args()
    found: dict[str, list[float]] = {name: [] for name in MEASURES if name in options.only}
    with bench.workplace(options.network) as (folder, network):
        names = {"network": str(network), "folder": str(folder), "keras": str(bench.KERAS)}
        for name in found:
            seconds(name, **names)
        for name in bench.turns(list(found), options.rounds):
            found[name].append(seconds(name, **names))
    rows, targets = {}, []
    for name, times in found.items():
        title, _, _, asked = MEASURES[name]
        rows[name] = {"title": title, "seconds": bench.spread(times), "asked": asked}
        targets += [] if asked is None else [bench.target(title, asked, rows[name]["seconds"])]
    table = bench.table(rows.values(), {"title": "", "seconds": "s: median (least to most)"})
    result = {"rounds": options.rounds, "measures": rows, "targets": targets}
    bench.write(result, options.output, f"{table}\n\n{bench.targets_table(targets)}")


if __name__ == "__main__":
    main()
