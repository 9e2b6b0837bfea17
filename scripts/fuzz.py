"""Feed the readers of files with damaged ones, for minutes or days: whatever comes, they take it or refuse it.

    python scripts/fuzz.py --seconds 7200 --seed 1 --findings out/fuzz        # one process
    python scripts/fuzz.py --inputs 200 --only onnx,npz                       # so many inputs for each reader

A reader is given mutations of sound files: bits and bytes changed, parts cut, doubled, swapped, numbers made extreme;
in zips the members are changed as well, with checksums that fit, and in JSON the values. It may return, or raise an
`InputError` whose message is one printable line. Everything else is a finding: another exception, a crash, more than
`--limit` seconds or 2 GiB. The input of a finding is kept in the folder, with a line about it in findings.jsonl. The
same seed makes the same inputs.

A fork reads many inputs, so that a crash ends the fork alone. The counts are printed as JSON at the end, or when it is
interrupted: {reader: {inputs, taken, refused, findings, seconds}}.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import hashlib
import io
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
MOST_CHARACTERS = 500
MEMORY = 2 << 30
BATCH = 100  # inputs of one fork
EXTREME = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\ud800",
    "\x1b[31m",
    "../../etc/passwd",
    "Lambda",
    "function",
    "__lambda__",
    "a\nb",
    [],
    {},
    [[]],
    [0] * 50,
    {"class_name": "Lambda", "config": {}},
    {"class_name": "function", "module": "os", "config": "system"},
    {"name": []},
]


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        name: of it.
        suffix: that its files have.
        seeds: sound files.
        read: reads a file.
        change: makes another file of one; (content, generator) → content.
    """

    name: str
    suffix: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    change: Callable[[bytes, random.Random], bytes]


@dataclass
class Counts:
    """What came of the inputs of one reader."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)


# Mutations


def damaged(data: bytes, generator: random.Random) -> bytes:
    """One to five changes of the bytes."""
    found = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        if not found:
            return bytes(generator.randbytes(8))
        way, at = generator.randrange(8), generator.randrange(len(found))
        size = min(len(found) - at, generator.choice((1, 2, 4, 8, 64, 1024)))
        if way == 0:
            found[at] ^= 1 << generator.randrange(8)
        elif way == 1:
            found[at : at + size] = generator.randbytes(size)
        elif way == 2:
            width = generator.choice((1, 2, 4, 8))
            found[at : at + width] = (generator.choice(EXTREME) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif way == 3:
            del found[at : at + size]
        elif way == 4:
            found[at:at] = found[at : at + size]
        elif way == 5:
            other = generator.randrange(len(found))
            found[at : at + size] = found[other : other + size]
        elif way == 6 and generator.random() < 0.2:
            del found[at:]
        else:
            found[at] = generator.randrange(256)
    return bytes(found)


def damaged_json(text: str, generator: random.Random) -> str:
    """One to three values replaced, dropped or doubled; now and then the text itself."""
    if generator.random() < 0.1:
        return damaged(text.encode(), generator).decode(errors="surrogateescape")
    value = json.loads(text)
    for _ in range(generator.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        container, key = generator.choice(places)
        way = generator.randrange(4)
        if way == 0 and isinstance(container, dict):
            container[str(generator.choice(VALUES))] = container[key]
        elif way == 1:
            del container[key]
        elif way == 2:
            container[key] = [container[key]] * generator.choice((1, 2, 30))
        else:
            container[key] = copy.deepcopy(generator.choice(VALUES))  # a later change may be inside of it
    return json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def damaged_zip(data: bytes, generator: random.Random) -> bytes:
    """A member changed, in an archive that is whole; or the archive's own bytes."""
    if generator.random() < 0.3:
        return damaged(data, generator)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        chosen = generator.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                is_json = name.endswith(".json")
                content = (
                    damaged_json(content.decode(), generator).encode(errors="replace")
                    if is_json
                    else damaged(content, generator)
                )
            new.writestr(name, content)
    return buffer.getvalue()


# Readers


def readers(folder: Path) -> list[Reader]:
    """All of them; their sound files are made in the folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx
    from hostile import sound
    from hostile.onnx_graph import written

    import oip_torch
    from oip_torch import cli
    from oip_torch.base.image_files import read_images
    from oip_torch.keras.file import read_keras_file
    from oip_torch.network.onnx_file import read, read_graph

    sound.make(folder)
    functional = json.dumps(
        sound.config_of(sound.CONV, sound.layer("Flatten", "f"), sound.layer("Dense", "d", {"units": 3}))
    )
    keras = [
        sound.keras_file(folder / "x.keras").read_bytes(),
        sound.keras_file(folder / "y.keras", functional).read_bytes(),
    ]
    of_ours, foreign = (onnx.load(folder / name) for name in ("net.onnx", "foreign.onnx"))
    (entry,) = of_ours.metadata_props

    def changed_metadata(data: bytes, generator: random.Random) -> bytes:
        proto = onnx.ModelProto.FromString(data)
        proto.metadata_props[0].value = damaged_json(entry.value, generator).encode(errors="replace").decode()
        return bytes(proto.SerializeToString())

    def changed_graph(data: bytes, generator: random.Random) -> bytes:
        """With a digest that fits, where it is still a file of ours: else nothing behind the digest is reached."""
        data = damaged(data, generator)
        with contextlib.suppress(Exception):
            written(folder / "digest.onnx", onnx.ModelProto.FromString(data))
            return (folder / "digest.onnx").read_bytes()
        return data

    def changed_config(data: bytes, generator: random.Random) -> bytes:
        return damaged_json(data.decode(), generator).encode(errors="replace")

    def in_archive(path: Path) -> object:
        """The configuration in a sound archive."""
        archive = sound.keras_file(path.with_suffix(".keras"), path.read_bytes())
        return read_keras_file(archive)

    def command(path: Path) -> object:
        """The words of a command, one in a line: all of them are refused, since no file is there."""
        words = path.read_bytes().decode(errors="surrogateescape").split("\n")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words)
        if code not in (0, 2):
            raise AssertionError(f"exit code {code}")
        if code == 2:
            raise oip_torch.InputError(err.getvalue().removeprefix("error: ").removesuffix("\n"))
        return code

    commands = [
        "ascend\nno.onnx\nConv2D_1\n0-5,9\n--starts\n3\n--seed\n1\n--steps\n10\n--epsilon\n0.5\n--memory\n1\n--device\ncpu\n--json",
        "convert\nno.keras\n-o\nx.onnx\n--mean\n33.3\n--std\n78.5\n--range\n0,255\n--size\n8\n8\n--quiet",
        "compare\nno.keras\nno.onnx\n--runtimes\ntensorflow,jax\n--maps\n1-3\n--steps\n5\n--layer\nx",
        "atlas\nno.onnx\nx\n--starts\n2\n--engine\nlocal\n--settings\narticle\n--resume",
        "gallery\nno.zarr\n-o\npage.html\n--report\nnothing",
        "export-atlas\nno.zarr\n-o\nout",
        "layers\nno.onnx\n--json",
        "import\nno.onnx\n--mean\n1,2,3\n--std\n1,2,3",
    ]
    return [
        Reader(
            "onnx",
            ".onnx",
            [of_ours.SerializeToString(), foreign.SerializeToString()],
            lambda p: read_graph(p),
            damaged,
        ),
        Reader("graph", ".onnx", [of_ours.SerializeToString()], lambda p: read(p), changed_graph),
        Reader("metadata", ".onnx", [of_ours.SerializeToString()], lambda p: read(p), changed_metadata),
        Reader(
            "config",
            ".json",
            [functional.encode(), json.dumps(sound.config_of(sound.CONV)).encode()],
            in_archive,
            changed_config,
        ),
        Reader("keras", ".keras", keras, lambda p: read_keras_file(p), damaged_zip),
        Reader("hdf5", ".h5", [sound.model_h5(folder / "x.h5").read_bytes()], lambda p: read_keras_file(p), damaged),
        Reader("npz", ".npz", [(folder / "images.npz").read_bytes()], lambda p: read_images(p), damaged_zip),
        Reader("oips", ".nc", [(folder / "oips.nc").read_bytes()], oip_torch.Oips.load, damaged),
        Reader("calibration", ".nc", [(folder / "calibration.nc").read_bytes()], oip_torch.Calibration.load, damaged),
        Reader("command", ".txt", [text.encode() for text in commands], command, damaged),
    ]


# The hunt


def told(reader: Reader, path: Path) -> tuple[str, str]:
    """What comes of an input: ("taken", ""), ("refused", …), or ("finding", what is wrong)."""
    from oip_torch import InputError

    try:
        reader.read(path)
    except InputError as error:
        message = str(error)
        if len(message) > MOST_CHARACTERS:
            return "finding", f"a message of more than {MOST_CHARACTERS} characters"
        if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in message):
            return "finding", "a message with unprintable characters"
        return "refused", message
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "finding", f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return "taken", ""


def input_of(reader: Reader, seed: int, number: int) -> bytes:
    """The same for the same numbers."""
    generator = random.Random(f"{reader.name} {seed} {number}")
    return reader.change(generator.choice(reader.seeds), generator)


def _child(reader: Reader, seed: int, numbers: range, folder: Path, pipe: int) -> NoReturn:
    """Reads inputs and writes a line for each, before and after it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = folder / f"input{reader.suffix}"
    os.chdir(folder)
    for number in numbers:
        path.write_bytes(input_of(reader, seed, number))
        os.write(pipe, b"begins\n")
        os.write(pipe, (json.dumps(told(reader, path)) + "\n").encode())
    os._exit(0)


def hunt(
    reader: Reader, seed: int, first: int, count: int, limit: float, note: Callable[[int, str], None], counts: Counts
) -> None:
    """Read `count` inputs from the first number on; `note` is told of findings."""
    began, number = time.monotonic(), first
    while number < first + count:
        with tempfile.TemporaryDirectory() as name:
            here, there = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(here)
                _child(reader, seed, range(number, first + count), Path(name), there)
            os.close(there)
            number, why = _watch(here, child, number, limit, note, counts)
            os.close(here)
            if why:
                note(number, why)
                counts.inputs += 1
                counts.findings[why] = counts.findings.get(why, 0) + 1
                number += 1
    counts.seconds += time.monotonic() - began


def _watch(
    pipe: int, child: int, number: int, limit: float, note: Callable[[int, str], None], counts: Counts
) -> tuple[int, str]:
    """Follow a child to its end; returns the number of the input at which it ended, and why, or "" if all is done."""
    buffer, begun, why = b"", False, ""
    while True:
        ready, _, _ = select.select([pipe], [], [], limit if begun else None)
        if not ready:
            why = f"more than {limit:g} s"
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        buffer += part
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            begun = line == b"begins"
            if begun:
                continue
            kind, text = json.loads(line)
            counts.inputs += 1
            if kind == "finding":
                note(number, text)
                counts.findings[text] = counts.findings.get(text, 0) + 1
            else:
                setattr(counts, kind, getattr(counts, kind) + 1)
            number += 1
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if not why and code != 0:
        why = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return number, why


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, help="how long; the readers take turns")
    parser.add_argument("--inputs", type=int, help="so many inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of readers, separated by commas")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds that one input may take")
    parser.add_argument("--findings", type=Path, help="a folder for the inputs of findings")
    given = parser.parse_args()
    if (given.seconds is None) == (given.inputs is None):
        parser.error("expected either --seconds or --inputs")
    with tempfile.TemporaryDirectory() as name:
        chosen = readers(Path(name))
        if given.only:
            chosen = [reader for reader in chosen if reader.name in given.only.split(",")]
        gc.freeze()
        counts = {reader.name: Counts() for reader in chosen}
        with contextlib.suppress(KeyboardInterrupt):
            _turns(given, chosen, counts)
    print(json.dumps({name: vars(each) for name, each in counts.items()}, indent=1))


def _turns(given: argparse.Namespace, chosen: list[Reader], counts: dict[str, Counts]) -> None:
    """Each reader in its turn, until time or inputs are over."""
    until = time.monotonic() + (given.seconds or 0)
    first, kept = 0, set[tuple[str, str]]()
    while first < given.inputs if given.inputs is not None else time.monotonic() < until:
        count = BATCH if given.inputs is None else min(BATCH, given.inputs - first)
        for reader in chosen:
            if given.inputs is None and time.monotonic() > until:
                return

            def note(number: int, what: str, reader: Reader = reader) -> None:
                if given.findings is None or (reader.name, what) in kept:  # one of each kind is enough
                    return
                kept.add((reader.name, what))
                given.findings.mkdir(parents=True, exist_ok=True)
                content = input_of(reader, given.seed, number)
                path = given.findings / f"{reader.name}_{hashlib.sha256(content).hexdigest()[:12]}{reader.suffix}"
                path.write_bytes(content)
                with (given.findings / "findings.jsonl").open("a") as file:
                    entry = {
                        "reader": reader.name,
                        "seed": given.seed,
                        "number": number,
                        "what": what,
                        "file": path.name,
                    }
                    file.write(json.dumps(entry) + "\n")

            hunt(reader, given.seed, first, count, given.limit, note, counts[reader.name])
        first += count


if __name__ == "__main__":
    main()
