#!/usr/bin/env python3
"""Train the Keras MNIST CNN whose feature maps this project looks into, and save it without its optimizer.

The network is that of a blog series on CNNs for MNIST: three convolutions named `Conv2D_1` to `Conv2D_3`, two poolings
between them, two dense layers. The article leaves some values open: `build_model` and `train` say what was chosen.

    python scripts/train_mnist_cnn.py --seed 1                     # downloads MNIST through Keras
    python scripts/train_mnist_cnn.py --data mnist.npz -o cnn.h5   # digits from a file, legacy file format

Exit codes: 0 saved; 1 training diverged, nothing saved; 2 the call or its input is wrong (one line on stderr).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

MEAN, STD = 33.318421, 78.567490  # of all 60,000 x 28 x 28 training pixels, on the 0-255 scale
SIDE = 28
DIGITS = 10
ENDINGS = (".keras", ".h5")
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "models" / "mnist_cnn.keras"


class InputError(Exception):
    """The call, or a file that it names, is wrong: what, got, expected, next step, in one line."""


class DivergedError(Exception):
    """Training ended in weights that are not finite numbers."""


@dataclass(frozen=True, kw_only=True)
class Digits:
    """MNIST in the layout of Keras' `mnist.npz`: images (N, 28, 28) uint8, labels (N,) integers 0-9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def __post_init__(self) -> None:
        """Refuse, with `InputError`, arrays that are not laid out so."""
        for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
            x, y = getattr(self, images), getattr(self, labels)
            if x.ndim != 3 or x.shape[1:] != (SIDE, SIDE) or len(x) == 0 or x.dtype != np.uint8:
                raise InputError(
                    f"{images} has shape {x.shape} and dtype {x.dtype}; expected (N, {SIDE}, {SIDE}) with N >= 1 and "
                    "dtype uint8; give data in the layout of Keras' mnist.npz"
                )
            if y.shape != (len(x),) or y.dtype.kind not in "iu":
                raise InputError(
                    f"{labels} has shape {y.shape} and dtype {y.dtype}; expected ({len(x)},), one integer for each "
                    f"image of {images}; give data in the layout of Keras' mnist.npz"
                )
            if y.min() < 0 or y.max() >= DIGITS:
                raise InputError(
                    f"{labels} holds labels from {y.min()} to {y.max()}; expected 0 to {DIGITS - 1}; "
                    "give the labels of MNIST's digits"
                )


def import_keras() -> Any:
    """Import Keras on TensorFlow, quietly; late, so that a wrong call is answered at once and without TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes on absent GPUs; real errors come as exceptions
    try:
        import keras
        import tensorflow  # noqa: F401
    except ImportError as problem:
        raise InputError(
            f"TensorFlow with Keras 3 cannot be imported, got {str(problem)!r}; training needs both; "
            'install them with: pip install "oip_torch[convert]"'
        ) from problem
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras calls .h5 legacy there; the caller asked for it
    return keras


def load_digits(path: Path | None) -> Digits:
    """Read MNIST from an npz file in Keras' layout (never unpickling), or let Keras download and cache it."""
    if path is None:
        keras = import_keras()
        try:
            (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
        except Exception as problem:  # get_file wraps every kind of network trouble in a bare Exception
            raise InputError(
                f"Keras could not get MNIST, got {str(problem)!r}; expected a download or a cached file; "
                "check the network, or give the file with --data mnist.npz"
            ) from problem
        return Digits(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    if not os.path.isfile(path):  # unlike Path.is_file, just False for a name that the system refuses
        found = "a directory" if os.path.isdir(path) else "no file"
        raise InputError(
            f"--data {str(path)!r}: {found} there; expected an npz file in the layout of Keras' mnist.npz; "
            "check the path, or leave --data out to download MNIST"
        )
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = file.files
            arrays = {name: file[name] for name in names if name in stored}
    except Exception as problem:  # numpy, zipfile and zlib each have errors of their own for a damaged file
        raise InputError(
            f"--data {str(path)!r} cannot be read, got {str(problem)!r}; expected an npz file of plain arrays; "
            "check the file, or leave --data out to download MNIST"
        ) from problem
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"--data {str(path)!r} lacks {', '.join(missing)}; got {stored[:8]}; expected {', '.join(names)}; "
            "give a file in the layout of Keras' mnist.npz"
        )
    return Digits(**arrays)


def standardized(images: np.ndarray) -> np.ndarray:
    """(N, 28, 28) uint8 -> (N, 28, 28, 1) float32, (x - MEAN) / STD: one mean and deviation for all pixels."""
    return ((images.astype(np.float32) - MEAN) / STD)[..., np.newaxis]


def build_model(*, l2: float) -> Any:
    """The network, not compiled: (batch, 28, 28, 1) standardised floats -> (batch, 10) probabilities.

    From the article: three 3x3 convolutions of 32, 64 and 128 maps ("valid", stride 1, ReLU), 2x2 max pooling after the
    first two. Left open there, and chosen here:

    * Dense layers of 100 and 10 units. 1152 flattened values need no wide layer for ten digits: 100 units reach the
      accuracy that the series reports, and leave the work to the maps, which this project is about. Ten is one a digit.
    * Softmax on the output. The article has a sigmoid under categorical cross-entropy; ten exclusive classes call for
      probabilities that sum to 1. The maps below are reached by the same formulas either way.
    * L2 on every kernel, convolutional and dense, not on biases: a bias does not scale with its input, so penalising it
      only shifts the fit. 1e-4 by default: weak enough to cost no accuracy, strong enough to keep kernels from growing
      on digits that are already classified.
    """
    import keras

    def convolution(maps: int, name: str) -> Any:
        return keras.layers.Conv2D(
            maps,
            (3, 3),
            activation="relu",
            data_format="channels_last",
            kernel_regularizer=keras.regularizers.L2(l2),
            name=name,
        )

    def dense(units: int, activation: str, name: str) -> Any:
        return keras.layers.Dense(units, activation=activation, kernel_regularizer=keras.regularizers.L2(l2), name=name)

    def pooling(name: str) -> Any:
        return keras.layers.MaxPooling2D((2, 2), data_format="channels_last", name=name)

    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1), name="Input"),
            convolution(32, "Conv2D_1"),
            pooling("Max_Pool_1"),
            convolution(64, "Conv2D_2"),
            pooling("Max_Pool_2"),
            convolution(128, "Conv2D_3"),
            keras.layers.Flatten(data_format="channels_last", name="Flatten"),
            dense(100, "relu", "Dense_1"),
            dense(DIGITS, "softmax", "Dense_2"),
        ],
        name="mnist_cnn",
    )


def train(
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    l2: float,
) -> tuple[Any, float]:
    """Train on all training digits; return the model and its accuracy on the test digits.

    The test digits are looked at once, after the last epoch: nothing is chosen by them. Left open in the article, and
    chosen here:

    * Cosine decay from 0.05 to 0 over all steps: large steps first, then ever smaller ones, so that the last weights
      are settled and can be taken as they are, without picking an epoch. It has nothing to tune but its start.
    * Momentum 0.9, the customary value: it averages over about ten batches of 64, which 0.05 needs to run smoothly.
    * Cross-entropy in its sparse form, labels as integers: the same number as with one-hot vectors.

    The seed and TensorFlow's deterministic operations make two runs on one machine give the same weights.
    """
    keras = import_keras()
    import tensorflow

    keras.utils.set_random_seed(seed)
    tensorflow.config.experimental.enable_op_determinism()

    model = build_model(l2=l2)
    steps = epochs * math.ceil(len(digits.x_train) / batch_size)
    model.compile(
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(learning_rate, steps), momentum=momentum),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        standardized(digits.x_train),
        digits.y_train,
        epochs=epochs,
        batch_size=batch_size,
        verbose=1 if sys.stdout.isatty() else 2,  # a moving bar for people, one line an epoch for logs
    )
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise DivergedError(
            f"training diverged: got weights that are not finite after {epochs} epochs at learning rate "
            f"{learning_rate:g}; expected finite numbers; nothing was saved; lower --learning-rate or --momentum"
        )
    probabilities = model.predict(standardized(digits.x_test), batch_size=256, verbose=0)
    return model, float((probabilities.argmax(axis=1) == digits.y_test).mean())


def temporary_name(output: Path) -> Path:
    """A name beside the target, with its ending, because Keras picks the format by the ending."""
    return output.with_name(f".{output.stem}-{os.getpid()}{output.suffix}")


def check_output(output: Path) -> None:
    """Find out before the training whether its result can be written."""
    if output.suffix not in ENDINGS:
        raise InputError(
            f"--output {str(output)!r} ends in {output.suffix!r}; expected {' or '.join(ENDINGS)}; "
            "the ending picks Keras' file format"
        )
    if os.path.isdir(output):
        raise InputError(f"--output {str(output)!r} is a directory; expected a file; give a name that is free")
    if not os.path.isdir(output.parent):
        raise InputError(
            f"--output {str(output)!r}: its folder {str(output.parent)!r} is not there or not a folder; "
            "expected an existing folder; make it first"
        )
    probe = temporary_name(output)
    try:
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise InputError(
            f"--output {str(output)!r}: cannot write in {str(output.parent)!r}, got {problem.strerror!r}; "
            "expected a writable folder; choose another with --output"
        ) from problem


def save(model: Any, output: Path) -> None:
    """Write the layers and weights, nothing of the training, whole or not at all.

    Keras heeds `include_optimizer=False` for .h5 only: a .keras file always holds the optimizer of a compiled model,
    and `clone_model` compiles its copy. So what is saved is built anew from the layers alone.
    """
    import keras

    bare = keras.Sequential.from_config(model.get_config())
    bare.set_weights(model.get_weights())
    temporary = temporary_name(output)
    try:
        bare.save(temporary, include_optimizer=False)
        os.replace(temporary, output)
    except OSError as problem:
        raise InputError(
            f"--output {str(output)!r} could not be written, got {str(problem)!r}; expected room and permission; "
            "nothing was saved; free the space or choose another place with --output"
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text before its errors: one line, as everything else here."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with 2."""
        self.exit(2, f"error: {' '.join(message.split())}; see --help\n")


def number(
    kind: type[int] | type[float], allowed: Callable[[float], bool], expected: str
) -> Callable[[str], int | float]:
    """An argparse type: the text as an int or a float, if it is finite and allowed."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed(value)):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = OneLineParser(
        description="Train the Keras MNIST CNN (Conv2D_1, Conv2D_2, Conv2D_3) and save it without optimizer state.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    count = number(int, lambda n: 1 <= n < 2**31, "a whole number of at least 1")
    parser.add_argument("--epochs", type=count, default=8, metavar="N", help="passes through the training digits")
    parser.add_argument(
        "--seed",
        type=number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295"),
        default=1,
        metavar="S",
        help="for the first weights and the order of the digits",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="digits in the layout of Keras' mnist.npz (default: keras.datasets.mnist.load_data(), which downloads)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.keras|FILE.h5",
        help="where to save; the ending picks the format (default: models/mnist_cnn.keras of this repository)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="digits in one step")
    parser.add_argument(
        "--learning-rate",
        type=number(float, lambda x: x > 0, "a number above 0"),
        default=0.05,
        metavar="X",
        help="at the first step; falls to 0 along a cosine",
    )
    parser.add_argument(
        "--momentum",
        type=number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1"),
        default=0.9,
        metavar="X",
        help="of SGD",
    )
    parser.add_argument(
        "--l2",
        type=number(float, lambda x: x >= 0, "a number of at least 0"),
        default=1e-4,
        metavar="X",
        help="weight penalty on all kernels",
    )
    # Set here and not as defaults, so that --help does not print a path of this machine.
    return parser.parse_args(arguments, argparse.Namespace(data=None, output=DEFAULT_OUTPUT))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything that can be checked, then train, save and report; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        check_output(options.output)
        digits = load_digits(options.data)
        model, accuracy = train(
            digits,
            epochs=options.epochs,
            seed=options.seed,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            l2=options.l2,
        )
        save(model, options.output)
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except DivergedError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was saved", file=sys.stderr)
        return 130
    print(f"test accuracy: {accuracy:.4f} ({accuracy:.2%}) on {len(digits.y_test)} digits")
    print(f"saved: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
