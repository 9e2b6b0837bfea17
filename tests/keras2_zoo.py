"""Files that Keras 2 wrote, and what it computed: `python tests/keras2_zoo.py FOLDER`, where tf-keras is installed.

tests/data/keras2 holds what tf-keras 2.20.1 or 2.21.0 made of it: networks as .h5 and .keras, and NAME.npz with
`images` and Keras 2's own `output`. tf-keras is the independent witness, and no requirement of the tests.

`python tests/keras2_zoo.py FOLDER APPLICATION SIZE` makes one of the networks of keras.applications, as .h5, with what
it computed for two images: `scripts/network_tables.py keras2` converts these.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

layers = keras.layers


def removed() -> Any:
    """Names with "/", arguments that Keras 3 does not know, TFOpLambda, a Sequential inside."""
    image = keras.Input((12, 11, 3), name="image")
    x = layers.Conv2D(5, 3, padding="same", use_bias=False, name="conv1/conv")(image)
    x = layers.BatchNormalization(name="conv1/bn")(x)
    x = layers.Activation("relu", name="conv1/relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(x)
    y = 2.0 - tf.nn.relu6(x * (1 / 6.0) + x)
    y = tf.nn.relu(tf.math.multiply(y, 2.0))
    gate = layers.Reshape((1, 1, 4), name="gate")(layers.GlobalAveragePooling2D(name="mean")(y))
    x = layers.Multiply(name="gated")([y, gate])
    first = layers.Conv2D(5, 3, activation="relu", input_shape=(24, 22, 4), name="inner_conv")
    inner = keras.Sequential([first, layers.MaxPooling2D(2, name="inner_pool")], name="inner")
    return keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(inner(x))))


def nested() -> Any:
    """Networks inside, each called twice; a shared layer; the inner one is an output as well."""
    inside = keras.Input((8, 8, 4), name="inside")
    inner = keras.Model(inside, layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(inside), name="inner")
    row = keras.Sequential([layers.Conv2D(4, 3, padding="same", input_shape=(8, 8, 4), name="b")], name="row")
    image = keras.Input((8, 8, 1), name="image")
    x = inner(layers.Conv2D(4, 3, padding="same", name="first")(image))
    y = row(inner(x))
    z = row(y)
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    once = shared(z)
    return keras.Model(image, layers.Add(name="sum")([x, y, z, once, shared(once)]))


def plain() -> Any:
    """A tutorial's network in mixed precision."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = keras.Sequential(
        [
            layers.Rescaling(1 / 255.0, input_shape=(12, 12, 1), name="scaled"),
            layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Dropout(0.5, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(3, dtype="float32", name="logits"),
        ]
    )
    keras.mixed_precision.set_global_policy("float32")
    return model


TAKES_PIXELS = ("EfficientNet", "MobileNetV3", "ConvNeXt", "RegNet")  # which scale them themselves


def application(folder: Path, name: str, size: int) -> None:
    """With random weights and ten classes."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(0)
    for layer in model.layers:  # no BatchNormalization is idle
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, w.shape)
                    if "variance" in w.name or "gamma" in w.name
                    else rng.normal(0, 0.1, w.shape)
                    for w in layer.weights
                ]
            )
    model.save(folder / f"{name}.h5")
    images = rng.uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    images = images if name.startswith(TAKES_PIXELS) else (images - 127.5) / 127.5
    np.savez(folder / f"{name}.npz", images=images, output=model(images, training=False).numpy())


def augmented() -> Any:
    """A tutorial's network of colour images: augmentation inside, arguments that Keras 3 has not, kinds of dropout."""
    front = keras.Sequential(
        [
            layers.RandomFlip("horizontal", input_shape=(12, 11, 3), name="flip"),
            layers.RandomRotation(0.1, name="turn"),
        ],
        name="augmentation",
    )
    return keras.Sequential(
        [
            front,
            layers.Rescaling(1 / 255.0, name="scaled"),
            layers.Conv2D(4, 3, name="conv"),
            layers.LeakyReLU(alpha=0.2, name="leaky"),
            layers.SpatialDropout2D(0.2, name="drop"),
            layers.BatchNormalization(scale=False, name="norm"),
            layers.GaussianNoise(0.1, name="noise"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="logits"),
        ]
    )


def main(folder: Path) -> None:
    for number, make in enumerate((removed, nested, plain, augmented)):
        keras.backend.clear_session()
        model, rng = make(), np.random.default_rng(number)
        for weight in model.weights:
            spread = np.sqrt(2 / max(1, np.prod(weight.shape[:-1]))) if len(weight.shape) > 1 else 0.3
            positive = "variance" in weight.name or "gamma" in weight.name
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, spread, weight.shape))
        for ending in ("h5", "keras"):
            model.save(folder / f"{make.__name__}.{ending}")
        if make is augmented:  # and its weights alone, in both forms that Keras 2 has
            (folder / "augmented.json").write_text(model.to_json(), encoding="utf-8")
            for ending in ("h5", "weights.h5"):
                model.save_weights(folder / f"alone.{ending}")
        images = rng.uniform(0, 255, (3, *model.input_shape[1:])).astype(np.float32)
        if make not in (plain, augmented):
            images = (images - 127.5) / 75
        np.savez(folder / f"{make.__name__}.npz", images=images, output=model(images, training=False).numpy())


if __name__ == "__main__":
    if len(sys.argv) > 2:
        application(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
