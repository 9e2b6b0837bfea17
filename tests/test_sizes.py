"""Sizes by arithmetic are Keras' own, and what becomes too large is refused before TensorFlow starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bad_input import CONV, config_of, layer

from oip_torch import InputError
from oip_torch.keras import sizes
from oip_torch.keras.file import read_keras_file


def found(config: dict[str, Any], image: tuple[int, int, int] | None) -> dict[str, tuple[int, ...]]:
    """The output of each layer whose size is known."""
    shapes: dict[str, tuple[int, ...]] = {}
    sizes._network(
        config,
        image,
        lambda entry, what, size: shapes.update({entry["config"]["name"]: tuple(size)} if "out" in what else {}),
    )
    return shapes


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_they_are_what_tensorflow_computes(zoo: Path) -> None:
    compared = 0
    for path in sorted(zoo.glob("*.npz")):
        file = read_keras_file(zoo / path.stem)
        shapes = found(file.config, file.input_shape)
        with np.load(path) as arrays:
            for name in set(arrays.files) & set(shapes):
                assert shapes[name] == arrays[name].shape[1:], (path, name)
                compared += 1
    assert compared > 40


CHAIN = [
    (CONV, (6, 6, 2)),
    (layer("Conv2D", "same", {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"}), (3, 3, 3)),
    (layer("ZeroPadding2D", "pad", {"padding": [[1, 0], [2, 3]]}), (4, 8, 3)),
    (layer("UpSampling2D", "up", {"size": [2, 3]}), (8, 24, 3)),
    (layer("MaxPooling2D", "pool", {"pool_size": [2, 2], "strides": None}), (4, 12, 3)),
    (layer("Conv2DTranspose", "back", {"filters": 5, "kernel_size": 3, "strides": 2}), (9, 25, 5)),
    (layer("DepthwiseConv2D", "deep", {"kernel_size": 3, "depth_multiplier": 2, "dilation_rate": 2}), (5, 21, 10)),
    (layer("Cropping2D", "crop", {"cropping": 1}), (3, 19, 10)),
    (layer("Permute", "turn", {"dims": [2, 1, 3]}), (19, 3, 10)),
    (layer("Reshape", "shape", {"target_shape": [-1, 30]}), (19, 30)),
    (layer("Dense", "dense", {"units": 7}), (19, 7)),
    (layer("Flatten", "flat"), (133,)),
]


def test_each_kind_by_hand() -> None:
    shapes = found(config_of(*(entry for entry, _ in CHAIN)), (8, 8, 1))
    assert [shapes[entry["config"]["name"]] for entry, _ in CHAIN] == [shape for _, shape in CHAIN]


LARGE = {
    "padding": (
        layer("ZeroPadding2D", "x", {"padding": 10**6}),
        r"the output of layer 'x' \(ZeroPadding2D\) has 200000",
    ),
    "enlarging": (layer("UpSampling2D", "x", {"size": [9000, 9000]}), r"the output of layer 'x' \(UpSampling2D\)"),
    "kernel": (
        layer("Conv2D", "x", {"filters": 10**6, "kernel_size": [99, 99]}),
        r"the kernel of layer 'x' \(Conv2D\) has 99×99×2×1000000 elements: expected at most 268435456; set OIP_MAX",
    ),
    "units": (layer("Dense", "x", {"units": 10**30}), r"the kernel of layer 'x' \(Dense\) has 2×100000…"),
    "unknown before": (
        [layer("MultiHeadAttention", "m"), layer("Dense", "x", {"units": 10**12})],
        r"the bias of layer 'x' \(Dense\)",
    ),
    "inside": (
        layer("Sequential", "inner", {"layers": [layer("UpSampling2D", "x", {"size": [9000, 9000]})]}),
        r"the output of layer 'x'",
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_becomes_too_large_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, match = LARGE[name]
    config = config_of(CONV, *(entries if isinstance(entries, list) else [entries]))
    with pytest.raises(InputError, match=rf"x\.h5: {match}"):
        sizes.check_sizes(config, (8, 8, 1), Path("x.h5"))
    monkeypatch.setenv(sizes.MOST_ELEMENTS, "1e17")
    if name not in ("units",):
        sizes.check_sizes(config, (8, 8, 1), Path("x.h5"))
    monkeypatch.setenv(sizes.MOST_ELEMENTS, "nan")
    with pytest.raises(InputError, match="at most 268435456"):
        sizes.check_sizes(config, (8, 8, 1), Path("x.h5"))


def test_odd_arguments_are_left_to_keras() -> None:
    for options in ({}, {"units": "x"}, {"units": None}):
        sizes.check_sizes(config_of(CONV, layer("Dense", "x", options)), (8, 8, 1), Path("x.h5"))
    for options in ({}, {"size": 0}, {"size": [1]}, {"size": "ab"}, {"size": {}}):
        sizes.check_sizes(config_of(CONV, layer("UpSampling2D", "x", options)), (8, 8, 1), Path("x.h5"))
