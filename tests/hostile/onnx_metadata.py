"""What an ONNX file of ours says of itself: JSON that a stranger may have written, in a file whose digest fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import onnx

from hostile import Cases, Place
from hostile.onnx_graph import metadata, written

CASES = Cases("metadata")
Change = Callable[[dict[str, Any]], Any]
LAYERS = ("layers", "x.onnx", "--json")
ASCEND = ("ascend", "x.onnx", "wide", "0", "--steps", "2")


# Without effect: what is shown is escaped, what is not known is passed over.
TAKEN = frozenset(
    "layer_name_escape layer_name_lines layer_kind_escape layer_activation_unknown layer_surplus "
    "mean_without_std".split()
)


def _changed(name: str, change: Change, words: tuple[str, ...] = LAYERS, match: str = "") -> None:
    def make(place: Place) -> list[str]:
        proto = onnx.load(place.sound / "net.onnx")
        written(place.folder / "x.onnx", proto, text=json.dumps(change(metadata(proto))))
        return list(words)

    CASES.add(name, make, match=match, code=0 if name in TAKEN else 2)


def _text(name: str, text: Callable[[str], str]) -> None:
    def make(place: Place) -> list[str]:
        proto = onnx.load(place.sound / "net.onnx")
        (entry,) = proto.metadata_props
        entry.value = text(entry.value)
        place.write("x.onnx", proto.SerializeToString())
        return list(LAYERS)

    CASES.add(name, make)


def _layer(**changes: Any) -> Change:
    return lambda data: data | {"layers": [data["layers"][0] | changes, *data["layers"][1:]]}


INFINITE, NAN = float("inf"), float("nan")
for key in (
    "format",
    "layers",
    "output",
    "input_shape",
    "source",
    "source_sha256",
    "graph_sha256",
    "versions",
    "proof",
):
    _changed(f"no_{key}", lambda d, key=key: {name: value for name, value in d.items() if name != key})
    if key not in ("proof",):
        _changed(f"{key}_null", lambda d, key=key: d | {key: None})
    _changed(f"{key}_deep", lambda d, key=key: d | {key: _nested(200)})


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


for name, value in {
    "format_0": 0,
    "format_99": 99,
    "format_text": "3",
    "format_infinite": INFINITE,
    "format_list": [1],
    "format_true": 1.5,
}.items():
    _changed(name, lambda d, value=value: d | {"format": value})
for name, value in {
    "shape_short": [20, 32],
    "shape_infinite": [20, 32, INFINITE],
    "shape_nan": [20, NAN, 3],
    "shape_zero": [0, 32, 3],
    "shape_negative": [-20, 32, 3],
    "shape_huge": [1 << 30, 1 << 30, 3],
    "shape_other": [21, 32, 3],
    "shape_text": "abc",
    "shape_300_digits": [20, 32, 10**300],
    "shape_fraction": [20.5, 32, 3],
    "shape_numerals": ["20", "32", "3"],
}.items():
    _changed(name, lambda d, value=value: d | {"input_shape": value})
for name, changes in {
    "maps_infinite": {"maps": INFINITE},
    "maps_huge": {"maps": 10**30},
    "maps_other": {"maps": 9},
    "maps_negative": {"maps": -8},
    "maps_text": {"maps": "8"},
    "maps_true": {"maps": True},
    "maps_fraction": {"maps": 8.5},
    "height_huge": {"height": 1e300},
    "height_negative": {"height": -9},
    "height_other": {"height": 10},
    "height_nan": {"height": NAN},
    "width_null": {"width": None},
    "error_negative": {"max_error": -1.0},
    "error_nan": {"max_error": NAN},
    "error_infinite": {"max_error": INFINITE},
    "error_null": {"max_error": None},
    "error_text": {"max_error": "0"},
    "tensor_missing": {"tensor": "nowhere"},
    "tensor_image": {"tensor": "image"},
    "tensor_before_other": {"tensor_before": "logits"},
    "tensor_list": {"tensor": ["wide"]},
    "name_of_another": {"name": "narrow"},
    "name_number": {"name": 3},
    "name_empty": {"name": ""},
    "name_long": {"name": "n" * 3_000_000},
    "name_surrogate": {"name": "\ud800"},
    "name_escape": {"name": "\x1b[31m\x1b]0;x\x07"},
    "name_lines": {"name": "a\nerror: b"},
    "kind_list": {"kind": [1]},
    "kind_escape": {"kind": "\x1b[31m"},
    "activation_number": {"activation": 3},
    "activation_unknown": {"activation": "os.system"},
    "surplus": {"__class__": "os.system"},
}.items():
    _changed(f"layer_{name}", _layer(**changes))
for name, figures in {
    "infinite": [0, INFINITE, 0, 0],
    "nan": [NAN] * 4,
    "huge": [1e300] * 4,
    "none": [],
    "short": [0.4],
    "other": [0.0, 0.0, 0.0, 0.0],
    "text": ["a", "b", "c", "d"],
    "negative_spread": [0.43, -1.0, 7.46, -1.02],
}.items():
    _changed(f"figures_{name}", _layer(figures=figures), words=ASCEND)
_changed("empty_layers", lambda d: d | {"layers": []})
_changed("layers_object", lambda d: d | {"layers": {"wide": 1}})
_changed("layers_twice", lambda d: d | {"layers": d["layers"] * 2})
_changed("layers_a_million", lambda d: d | {"layers": [{}] * 1_000_000})
_changed("one_layer_left_out", lambda d: d | {"layers": d["layers"][1:]})
_changed("output_other", lambda d: d | {"output": "nowhere"})
_changed("is_a_list", lambda d: [d])
_changed("is_null", lambda d: None)
_changed("is_a_number", lambda d: INFINITE)
_changed("mean_text", lambda d: d | {"mean": ["x"], "std": [1]})
_changed("std_zero", lambda d: d | {"mean": [0], "std": [0]})
_changed("std_nan", lambda d: d | {"mean": [0], "std": [NAN]})
_changed("mean_without_std", lambda d: d | {"mean": [0], "std": None})
_changed("mean_of_2_channels", lambda d: d | {"mean": [0, 0], "std": [1, 1]})
_changed("mean_a_million", lambda d: d | {"mean": [0] * 1_000_000, "std": [1] * 1_000_000})
_changed("other_digest", lambda d: d | {"graph_sha256": "0" * 64})
_text("empty", lambda text: "")
_text("cut", lambda text: text[:300])
_text("nonsense", lambda text: "nonsense")
_text("brackets", lambda text: "[" * 30_000)
_text("closed_brackets", lambda text: "[" * 30_000 + "]" * 30_000)
_text("count_1e999", lambda text: text.replace('"maps": 8', '"maps": 1e999', 1))
_text("digits", lambda text: text.replace('"maps": 8', f'"maps": {"9" * 20_000}', 1))
_text("of_100_MB", lambda text: text[:-1] + ', "more": [' + "[]," * 33_000_000 + "0]}")


def _twice(place: Place) -> list[str]:
    """Two entries of one name: which of them is true?"""
    proto = onnx.load(place.sound / "net.onnx")
    proto.metadata_props.append(proto.metadata_props[0])
    proto.metadata_props[1].value = "{}"
    place.write("x.onnx", proto.SerializeToString())
    return list(LAYERS)


CASES.add("twice", _twice, code=0)
