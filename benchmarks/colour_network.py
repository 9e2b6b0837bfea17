"""A small colour network and its data, for presets.py: patches of two photographs that come with scikit-learn.

    python benchmarks/colour_network.py FOLDER
    oip convert FOLDER/colour.keras -o FOLDER/colour.onnx --data FOLDER/colour.npz
    python benchmarks/presets.py FOLDER/colour.onnx --data FOLDER/colour.npz --layers Conv2D_2 Conv2D_3

Four classes of patches of 32x32 pixels: sky and buildings of the one, blossom and leaves of the other photograph.
Patches to test are of the right quarter of each region, those to train of the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

SIDE = 32
REGIONS = (  # photograph, rows and columns of one of 427 x 640 pixels
    ("china.jpg", (0, 120), (0, 640)),
    ("china.jpg", (170, 427), (0, 640)),
    ("flower.jpg", (60, 330), (180, 480)),
    ("flower.jpg", (0, 427), (0, 170)),
)


def patches(count: int, *, test: bool, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """So many of each class, (N, 32, 32, 3), and their classes."""
    from sklearn.datasets import load_sample_image

    stream, images = np.random.default_rng(seed), []
    for name, (top, bottom), (left, right) in REGIONS:
        part = load_sample_image(name)[top:bottom, left:right]
        edge = part.shape[1] * 3 // 4
        part = part[:, edge:] if test else part[:, :edge]
        for y, x in stream.integers(0, np.array(part.shape[:2]) - SIDE + 1, (count, 2)):
            patch = part[y : y + SIDE, x : x + SIDE]
            images.append(patch[:, ::-1] if stream.random() < 0.5 else patch)
    return np.stack(images), np.repeat(np.arange(len(REGIONS)), count)


def main(folder: Path) -> None:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x_train, y_train = patches(3000, test=False, seed=0)
    x_test, y_test = patches(500, test=True, seed=1)
    network = keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.Rescaling(1 / 255, name="Rescaling"),
            layers.Conv2D(16, 5, activation="relu", name="Conv2D_1"),
            layers.MaxPooling2D(name="Max_Pool_1"),
            layers.Conv2D(32, 3, activation="relu", name="Conv2D_2"),
            layers.MaxPooling2D(name="Max_Pool_2"),
            layers.Conv2D(48, 3, activation="relu", name="Conv2D_3"),
            layers.Flatten(name="Flatten"),
            layers.Dense(len(REGIONS), activation="softmax", name="Dense_1"),
        ],
        name="colour",
    )
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(x_train, y_train, epochs=3, batch_size=64, verbose=2)
    print("accuracy on other parts of the photographs:", network.evaluate(x_test, y_test, verbose=0)[1])
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder / "colour.keras")
    np.savez(folder / "colour.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
