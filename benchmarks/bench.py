"""All benchmarks, one after the other, and a figure.

    make bench
    python benchmarks/bench.py [-o FOLDER] [--rounds N] [--only PART ...] [--without-rivals] [--against SRC]

Each part writes FOLDER/PART.json and prints its tables in Markdown; the figure is drawn from the files that are in
FOLDER, so that `--only` without a part draws it anew. All parts take an hour on two cores, speed.py half of it, and the
first time longer: the rivals' environments are made then. With `--against` the part speed is against.py: this checkout
of the package beside another one. What is committed of the results lies in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_tools import ROOT, tell

PARTS = ("speed", "growth", "startup", "large", "gpu")
OURS, OTHERS = "#c44e52", "#8c96a3"
LINES = {
    "images-within": "images, search included",
    "images-article": "images, the article's settings",
    "maps": "maps",
    "sides": "pixels of an image",
}


def run(options: argparse.Namespace) -> list[str]:
    """The parts; returns the names of those that failed."""
    failed = []
    for part in options.only:
        name, more = part, [] if options.network is None or part == "large" else ["--network", str(options.network)]
        more += ["--rounds", str(options.rounds)] if options.rounds and part != "gpu" else []
        if part == "speed":
            name = "against" if options.against else name
            more += [str(options.against)] if options.against else ["--without-rivals"] * options.without_rivals
        print(f"## {name}\n", flush=True)
        script, output = Path(__file__).with_name(f"{name}.py"), options.output / f"{name}.json"
        if subprocess.run([sys.executable, str(script), "-o", str(output), *more]).returncode != 0:
            failed.append(name)
    return failed


def draw(results: dict[str, Any], path: Path) -> None:
    """Time over the batched loop's; how time grows; whether time per OIP and memory stay."""
    from matplotlib.figure import Figure

    every = ((bars, "speed"), (growth, "growth"), (steadiness, "growth"))
    panels = [(panel, results[source]) for panel, source in every if source in results]
    if panels:
        figure = Figure(figsize=(5.6 * len(panels), 4.6), layout="constrained")
        for axes, (panel, result) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes, result)
        figure.savefig(path, dpi=110)
        tell(str(path))


def bars(axes: Any, speed: dict[str, Any]) -> None:
    rows = [row for row in speed["contestants"].values() if "left out" not in row]
    rows.sort(key=lambda row: row["ratio_to_batched"]["median"])
    for place, row in enumerate(rows):
        median, every = row["ratio_to_batched"]["median"], row["ratio_to_batched"]["all"]
        off = [[median - min(every)], [max(every) - median]]
        axes.barh(place, median, xerr=off, color=OURS if "gflops" in row else OTHERS, error_kw={"elinewidth": 1})
        axes.annotate(f"{median:.3g}", (max(every), place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_title(f"All {speed['maps']} maps of {speed['layer']}:\ntime over the batched loop's", fontsize=10)


def growth(axes: Any, result: dict[str, Any]) -> None:
    longest = 1.0
    for part, label in LINES.items():
        rows, power = (
            result["parts"].get(part, []),
            2 if part == "sides" else 1,
        )  # of the amount: what the work grows by
        if rows:
            amounts = [row["amount"] ** power for row in rows]
            times = [row["seconds"]["median"] / rows[0]["seconds"]["median"] for row in rows]
            over = [amount / amounts[0] for amount in amounts]
            axes.loglog(over, times, "o-", markersize=4, label=f"{label} ({amounts[0]:,} to {amounts[-1]:,})")
            longest = max(longest, *over)
    axes.loglog([1, longest], [1, longest], ":", color="black", linewidth=0.8, label="in proportion")
    axes.set_xlabel("amount over the least")
    axes.set_title("Time of an ascent over that of the least amount", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def steadiness(axes: Any, result: dict[str, Any]) -> None:
    for part, label in [each for each in list(LINES.items())[:2] if each[0] in result["parts"]]:
        rows = result["parts"][part]
        for key, what, style in (("seconds_per_oip", "time per OIP", "o-"), ("peak_mb", "peak memory", "s--")):
            medians = [row[key]["median"] for row in rows]
            over = [value / min(medians) for value in medians]
            what += label.removeprefix("images")
            axes.semilogx([row["amount"] for row in rows], over, style, markersize=4, base=2, label=what)
    axes.axhspan(1, 1.15, color="0.92", zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images")
    axes.set_title("Over the least; grey: the 15 % that are allowed", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "out" / "bench", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, help="of every part that takes turns; default: each its own")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--without-rivals", action="store_true")
    parser.add_argument("--against", type=Path, metavar="SRC", help="time another checkout's src folder beside ours")
    parser.add_argument("--network", type=Path, metavar="FILE.onnx", help="the shipped network, converted already")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    failed = run(options) if options.only else []
    files = {name: options.output / f"{name}.json" for name in PARTS}
    draw(
        {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()},
        options.output / "benchmarks.png",
    )
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
