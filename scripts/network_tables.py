"""Which networks can be converted? Makes the tables of docs/networks.md: `python scripts/network_tables.py [TABLE …]`.

    kinds          one tiny network for each kind of layer and configuration (tests/keras_kinds.py)
    applications   networks of keras.applications, with random weights and of a small size
    keras2         such networks as Keras 2 wrote them, .h5, with what it computed as the witness: it needs tf-keras

The kinds are exported one after another by one process of TensorFlow, and then converted as a user would with what it
left; the others have a process each, so that their time and memory are their own. Rows of other tables, and of networks
that are not named with --only, or that have a row where --missing is given, stay as they are: so the work can be
stopped and taken up again. The tests convert a sample of the kinds, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch

import oip_torch
from oip_torch import OipError
from oip_torch.keras import convert as conversion
from oip_torch.keras.aside import FILE as WEIGHTS
from oip_torch.keras.file import read_keras_file
from oip_torch.keras.verify import DIGIT_PROBES, NOISE_PROBES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "networks.md"
KINDS = ROOT / "tests" / "keras_kinds.py"
KERAS_2 = ROOT / "tests" / "keras2_zoo.py"
SIZES = {"height and width open": (14, 13)}  # of a kind that leaves them open
APPLICATIONS = {  # name → height and width: 64, or the least that it accepts; in the order in which they are tried
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "MobileNetV3Large": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "NASNetMobile": 64,
    "DenseNet121": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 224,
    "Xception": 71,
    "InceptionV3": 75,
    "ConvNeXtTiny": 64,
    "EfficientNetB1": 64,
    "EfficientNetV2B1": 64,
    "EfficientNetB2": 64,
    "EfficientNetV2B2": 64,
    "EfficientNetB3": 64,
    "EfficientNetV2B3": 64,
    "DenseNet169": 64,
    "ResNet101": 64,
    "ResNet101V2": 64,
    "InceptionResNetV2": 75,
    "VGG19": 64,
    "ConvNeXtSmall": 64,
    "EfficientNetB4": 64,
    "EfficientNetV2S": 64,
    "DenseNet201": 64,
    "ResNet152": 64,
    "ResNet152V2": 64,
    "EfficientNetB5": 64,
    "EfficientNetV2M": 64,
    "ConvNeXtBase": 64,
    "EfficientNetB6": 64,
    "NASNetLarge": 64,
    "EfficientNetB7": 64,
    "EfficientNetV2L": 64,
    "ConvNeXtLarge": 64,
    "ConvNeXtXLarge": 64,
}
NARROW = tuple(f"EfficientNetV2{size}" for size in ("B1", "B2", "B3", "S", "M", "L"))
"""Their batch norms are drawn within a tenth of what Keras starts with: drawn as widely as the others', rounding grows
from layer to layer until float32, and in the end float64, tells nothing."""
ALL_CLASSES = ("VGG16",)  # with the thousand classes that it has on ImageNet: 138 million weights; the others have ten
KERAS_2_APPLICATIONS = {  # as above; those of Keras 2, whose networks keep their names
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "MobileNetV3Large": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "NASNetMobile": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "RegNetX002": 64,
    "VGG16": 32,
    "DenseNet121": 64,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "ConvNeXtTiny": 64,
}
BUILD = """
import sys, keras, numpy as np
name, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
keras.utils.set_random_seed(0)
classes, spread = int(sys.argv[4]), float(sys.argv[5])
model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=classes)
rng = np.random.default_rng(0)
for layer in model.layers:  # no BatchNormalization is idle
    if type(layer).__name__ == "BatchNormalization":
        values = [rng.uniform(1 - spread, 1 + spread, w.shape) if "variance" in w.path or "gamma" in w.path
                  else rng.normal(0, 0.2 * spread, w.shape) for w in layer.weights]
        layer.set_weights(values)
model.save(path)
print(model.count_params())
"""


class Watched:
    """Runs a conversion, and knows how long it took and what it and its children held at most."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            held = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    held += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)

    def convert(self, source: Path, target: Path, **options: Any) -> dict[str, Any]:
        """The row of a table."""
        began, spent = time.perf_counter(), sum(os.times()[:4])
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            model = oip_torch.convert(source, target, device="cpu", progress=False, **options)
        except OipError as error:
            return {"refused": str(error).replace(f"{source.parent}{os.sep}", "")}
        finally:
            self._stop.set()
            thread.join()
        verification = model.network.verification
        return {
            "layers": len(model.layers),
            "error": verification["max_error"],
            "float64": verification.get("in_float64", []),
            "cosine": verification["gradient"]["cosine"],
            "cosine64": verification["gradient"].get("cosine_float64"),
            "rewritten": model.network.rewritten,
            "seconds": time.perf_counter() - began,
            "cpu": sum(os.times()[:4]) - spent,
            "peak": self.peak,
        }


def one(source: Path) -> dict[str, Any]:
    """In a process of its own, so that no memory of an earlier network counts."""
    command = [sys.executable, __file__, "--one", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


EXPORT = """
import json, sys
from pathlib import Path
from oip_torch.base.errors import InputError
from oip_torch.keras import export
for folder in map(Path, sys.argv[1:]):
    try:
        export.main(folder)
    except Exception as error:
        kind = type(error).__name__ if isinstance(error, InputError) else "Exception"
        (folder / "error.json").write_text(json.dumps({"kind": kind, "message": f"{type(error).__name__}: {error}"}))
"""


def exported(sources: list[dict[str, Any]], folder: Path) -> dict[Path, Path]:
    """Source → the folder with what `keras.export` made of it; sources that are refused before are left out."""
    folders = {}
    for number, options in enumerate(sources):
        source, size = Path(options["source"]), options["size"]
        try:
            file = read_keras_file(source, size, options.get("architecture"))
        except OipError:
            continue
        folders[source] = folder / f"exported_{number}"
        folders[source].mkdir()
        model = source if file.architecture is None else file.for_keras(folders[source])
        job = {"model": str(model), "size": size, "noise": NOISE_PROBES, "digits": DIGIT_PROBES}
        (folders[source] / "job.json").write_text(
            json.dumps(job | {"probes": None, "domain": {}, "dtype": "float32"}), encoding="utf-8"
        )
    run_keras("-c", EXPORT, *map(str, folders.values()))
    return folders


def answers_in(made: Path) -> Any:
    """What stands in for the process of TensorFlow: the files that it left."""
    ask = conversion._answers

    def answers(folder: Path, job: dict[str, Any], source: Path, say: Any) -> Iterator[Any]:
        if job["dtype"] != "float32":
            yield from ask(folder, job, source, say)
            return
        if (made / "error.json").exists():
            error = json.loads((made / "error.json").read_text(encoding="utf-8"))
            raise OipError(error["message"])
        for name in ("model.onnx", WEIGHTS, "layers.json"):
            shutil.copy(made / name, folder)
        yield {}
        for number in range(len(list(made.glob("answer_*.npz")))):
            with np.load(made / f"answer_{number}.npz", allow_pickle=False) as arrays:
                yield arrays

    return answers


def run_keras(*arguments: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def kinds(only: list[str]) -> Iterator[tuple[str, str]]:
    """Each kind and its row."""
    with tempfile.TemporaryDirectory() as name:
        run_keras(str(KINDS), name, *only)
        files = json.loads((Path(name) / "files.json").read_text(encoding="utf-8"))
        files = {kind: options | {"size": SIZES.get(kind)} for kind, options in files.items()}
        folders = exported(list(files.values()), Path(name))
        for kind, options in files.items():
            source = Path(options.pop("source"))
            with mock.patch.object(conversion, "_answers", answers_in(folders.get(source, Path(name)))):
                found = Watched().convert(source, Path(name) / "x.onnx", **options)
            print(kind, found, file=sys.stderr, flush=True)
            yield kind, f"| {kind} | {outcome(found)} |"


def applications(only: list[str]) -> Iterator[tuple[str, str]]:
    """Each network and its row."""
    for name, size in APPLICATIONS.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{name}.keras"
            classes = "1000" if name in ALL_CLASSES else "10"
            spread = "0.1" if name in NARROW else "0.5"
            weights = int(run_keras("-c", BUILD, name, str(size), str(source), classes, spread).split()[-1]) * 4 / 2**20
            found = one(source)
        print(name, found, file=sys.stderr, flush=True)
        measured = "| | |"
        if "refused" not in found:
            measured = f"| {found['seconds']:.0f} s | {found['cpu']:.0f} s | {found['peak'] / 2**20:.0f} MiB"
        drawn = "; batch norms drawn narrowly" if name in NARROW else ""
        yield name, f"| {name} | {size} | {weights:.0f} MiB | {outcome(found)}{drawn} {measured} |"


def keras2(only: list[str], files: Path | None) -> Iterator[tuple[str, str]]:
    """Each network of Keras 2 and its row, made from the files in a folder; what is not there is made first."""
    with tempfile.TemporaryDirectory() as name:
        for network, size in KERAS_2_APPLICATIONS.items():
            if only and network not in only:
                continue
            source = (files or Path(name)) / f"{network}.h5"
            if not source.with_suffix(".npz").exists():
                run_keras(str(KERAS_2), str(source.parent), network, str(size))
            target = Path(name) / "x.onnx"
            found = Watched().convert(source, target)
            apart = "" if "refused" in found else f"{difference(target, source.with_suffix('.npz')):.1e}"
            print(network, found, apart, file=sys.stderr, flush=True)
            yield network, f"| {network} | {size} | {outcome(found)} | {apart} |"


def difference(converted: Path, witness: Path) -> float:
    """Largest |torch - Keras 2| of a network's output, over the largest |Keras 2|."""
    model = oip_torch.load(converted, device="cpu")
    with np.load(witness, allow_pickle=False) as arrays:
        images, expected = arrays["images"], arrays["output"]
    with torch.no_grad():
        got = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def outcome(found: dict[str, Any]) -> str:
    """What became of a network, as its cell says it."""
    if "refused" in found:
        return f"refused: {found['refused']}".replace("|", "\\|")
    told = f"{found['layers']} layers, worst error {found['error']:.1e}"
    if found["float64"]:
        told += f"; {len(found['float64'])} decided in float64"
    if found["cosine64"] is not None:
        told += f"; gradient decided in float64 (cosine {found['cosine']:.5f} in float32)"
    graph = found["rewritten"].get("graph", {})
    changes = [f"{name} ({count}×)" if count > 1 else name for name, count in graph.items()]
    changes += found["rewritten"].get("configuration", [])
    return told + (f"; rewritten: {', '.join(changes)}" if changes else "")


def find_table(table: str) -> tuple[str, re.Match[str]]:
    """The page, and of the table between its marks the head and the rows."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = f"(<!-- {table} -->\n", f"<!-- end of {table} -->"
    match = re.search(start + r"(?:\|.*\n){2})((?:\|.*\n)*)" + re.escape(end), text)
    if match is None:
        raise SystemExit(f"{PAGE} has no table {table!r}")
    return text, match


def rows_of(table: str) -> dict[str, str]:
    """Name → row, as the page has them."""
    return {line.split("|")[1].strip(): line for line in find_table(table)[1][2].splitlines()}


def replace_row(table: str, name: str, row: str, order: list[str]) -> None:
    """Write a row between the table's marks; the others stay, but those of networks that are no more."""
    kept = rows_of(table) | {name: row}
    text, match = find_table(table)
    lines = "".join(f"{kept[each]}\n" for each in order if each in kept)
    PAGE.write_text(text[: match.start(2)] + lines + text[match.end(2) :])


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["kinds", "applications"])
    parser.add_argument("--only", nargs="*", default=[], help="these networks alone")
    parser.add_argument("--missing", action="store_true", help="those alone that have no row yet")
    parser.add_argument("--files", type=Path, help="a folder with the files of keras2, made before")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(Watched().convert(Path(arguments.one), Path(folder) / "x.onnx")))
        return
    for table in arguments.tables:
        orders = {"applications": list(APPLICATIONS), "keras2": list(KERAS_2_APPLICATIONS)}
        order = orders.get(table) or run_keras(str(KINDS), "--list").splitlines()
        only = arguments.only or order
        if arguments.missing:
            only = [name for name in only if name not in rows_of(table)]
        if not only:
            continue
        if table == "keras2":
            made = keras2(only, arguments.files)
        else:
            made = (kinds if table == "kinds" else applications)([] if only == order else only)
        for name, row in made:
            replace_row(table, name, row, order)


if __name__ == "__main__":
    main()
