"""What does ONNX Runtime compute for a graph, and for the file that the graph was made of? (in a child process)

ONNX Runtime is a C++ library that parses and runs an untrusted file here. So it does that in a child with limits
(`base.bounded`), which hands back plain arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oip_torch.base.bounded import BoundedError, run_bounded
from oip_torch.base.child import network_limits
from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.layouts import channels_first, channels_last
from oip_torch.base.temporary import temporary_folder
from oip_torch.base.watchdog import patience

if TYPE_CHECKING:
    import onnx

__all__ = ["ONE_BY_ONE", "Answers", "run_aside"]

Array = npt.NDArray[Any]
ONE_BY_ONE = 3
"""Images that the file itself is shown, whose batch may be 1."""
_TIMES_PATIENCE = 15  # as of an export: what all of it may take while it gets on
_OPEN_FILES = 64
_SLACK = 64 << 20  # bytes of an answer beside its arrays


@dataclass(frozen=True)
class Answers:
    """What ONNX Runtime gave.

    Attributes:
        tensors: tensor of the graph → its values for all images, in Keras' layout.
        outputs: (what the file gives, what the graph gives), of each output that was asked for, image by image.
    """

    tensors: dict[str, Array]
    outputs: list[tuple[Array, Array]]


def run_aside(
    file: onnx.ModelProto,
    graph: onnx.ModelProto,
    images: Array,
    tensors: Sequence[str],
    outputs: Mapping[str, str],
    *,
    last: bool,
    most: int,
) -> Answers:
    """Run the graph on all images at once, and it and the file on the first ones, one by one.

    Args:
        file: as it was read.
        graph: that was made of it; its input is "image", channels first.
        images: (N, height, width, channels), float32.
        tensors: of the graph, each once.
        outputs: outputs of the file → tensors of the graph that are to be the same.
        last: whether the file takes images with channels last.
        most: bytes that the arrays of the answer take, at most.

    Raises:
        ConversionError: ONNX Runtime refuses the graph or the file, or the graph takes one image alone.
        InputError: it came to no end: it crashed, or took too much time or memory; or no room for temporary files.
    """
    wide = type(graph).FromString(graph.SerializeToString())
    there = {value.name for value in wide.graph.output}
    for tensor in tensors:
        if tensor not in there:
            wide.graph.output.add(name=tensor)
    limits = dataclasses.replace(
        network_limits(), file_bytes=most + _SLACK, open_files=_OPEN_FILES, seconds=_TIMES_PATIENCE * patience()
    )
    with temporary_folder("import") as folder:
        paths = {name: str(folder / f"{name}.onnx") for name in ("file", "graph")}
        paths["images"] = str(folder / "images.npy")
        try:
            for name, proto in (("file", file), ("graph", wide)):
                with open(paths[name], "wb") as stream:
                    stream.write(proto.SerializeToString())
            del wide
            np.save(paths["images"], images)
        except OSError as error:
            from oip_torch.base.platform import in_words  # with torch, which the child does without

            raise InputError(
                f"the graph cannot be written to {folder.parent} for ONNX Runtime ({error.strerror or error}): "
                f"expected {in_words(2 * graph.ByteSize() + images.nbytes)} of room; set TMPDIR to a folder that has it"
            ) from None
        asked = {**paths, "tensors": list(tensors), "outputs": list(outputs.items()), "last": last}
        try:
            failed, found = run_bounded(f"{__name__}:in_child", asked, limits, patience=patience())
        except BoundedError as error:
            raise InputError(
                f"ONNX Runtime could not run the graph: {error}; expected one that it runs; export it anew"
            ) from error
    if failed:
        raise ConversionError(_told(str(failed.get("where")), str(failed.get("reason")), len(images)))
    try:
        return Answers(
            {tensor: channels_last(found[f"{index}"]) for index, tensor in enumerate(tensors)},
            [
                (found[f"file {one} {index}"], found[f"graph {one} {index}"])
                for one in range(min(ONE_BY_ONE, len(images)))
                for index in range(len(outputs))
            ],
        )
    except KeyError as error:
        raise InputError(f"ONNX Runtime's process gave no array {error}: repeat the call") from None


def _told(where: str, reason: str, images: int) -> str:
    if where == "batch":
        return (
            f"the graph does not run on {images} images at once: {reason[-160:]}: expected any number of them; export "
            "it anew with an open batch (of torch: dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    return f"ONNX Runtime cannot run this graph: {reason[:160]}"


def in_child(
    file: str, graph: str, images: str, tensors: list[str], outputs: list[tuple[str, str]], last: bool
) -> tuple[Any, Iterator[tuple[str, Array]] | dict[str, Array]]:
    """What `run_aside` asks of its child process: what failed, or None; and the arrays."""
    shown: Array = np.load(images, allow_pickle=False)
    first = channels_first(shown)
    names, renamed = [old for old, _ in outputs], [new for _, new in outputs]
    found: list[tuple[str, Array]] = []
    where = "graph"
    try:
        ours = _session(graph)
        where = "batch"
        found += zip(map(str, range(len(tensors))), ours.run(tensors, {"image": first}), strict=True)
        where = "file"
        theirs = _session(file)
        (image,) = theirs.get_inputs()
        for one in range(min(ONE_BY_ONE, len(shown)) if names else 0):
            given = (shown if last else first)[one : one + 1]
            for kind, values in (
                ("file", theirs.run(names, {image.name: given})),
                ("graph", ours.run(renamed, {"image": first[one : one + 1]})),
            ):
                found += [(f"{kind} {one} {index}", value) for index, value in enumerate(values)]
    except MemoryError:
        raise
    except Exception as error:  # of C++: its own kinds
        return {"where": where, "reason": " ".join(str(error).split())[-1000:]}, {}
    return None, _each_once(found)


def _each_once(found: list[tuple[str, Array]]) -> Iterator[tuple[str, Array]]:
    """Nothing is kept that was handed over: the parent holds it then."""
    found.reverse()
    while found:
        yield found.pop()


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
