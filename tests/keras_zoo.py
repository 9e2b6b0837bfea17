"""Keras networks for the tests: `python tests/keras_zoo.py FOLDER [MODEL.keras …]` builds, seeds and saves them.

Good ones are saved together with what TensorFlow computes: NAME.npz holds `images` and, by layer, the outputs and
(`before:LAYER`) what goes into the activation. These come from networks put together anew from the saved file's
layers, by Keras' own means, and share no code with `oip_torch.keras.export`. Further arguments are models to be
described in the same way. In a process of its own: TensorFlow and torch do not live in one.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

IMAGES = 7


def seeded(model: Any, seed: int) -> Any:
    """Every weight of the model from one random stream; no bias is 0 and no BatchNormalization is idle."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        kind, shape = weight.path.rsplit("/", 1)[-1], weight.shape
        if kind in ("gamma", "moving_variance", "variance"):
            values = rng.uniform(0.5, 1.5, shape)
        elif kind in ("beta", "bias", "moving_mean"):
            values = rng.uniform(0.1, 0.5, shape) * rng.choice([-1, 1], shape)
        else:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        weight.assign(values.astype(np.float32))
    return model


# Networks that must convert


def branches() -> Any:
    """Two branches and a pooling, concatenated; BatchNormalization with and without bias before it; SAME, odd sizes."""
    image = keras.Input((27, 25, 1), name="image_in")
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.Activation("relu", name="stem_relu")(x)
    left = layers.Conv2D(4, 5, padding="same", activation="relu", name="left")(x)
    left = layers.BatchNormalization(name="left_bn")(left)
    right = layers.Conv2D(5, (1, 4), padding="same", name="right")(x)
    right = layers.BatchNormalization(name="right_bn")(right)
    pool = layers.MaxPooling2D(3, strides=1, padding="same", name="pool")(x)
    x = layers.Concatenate(name="joined")([left, right, pool])
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="mix")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x))


def tokens() -> Any:
    """Patches as tokens, dense layers along their channels with a sum around them, and a layer norm, as a mixer has."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 4, strides=4, name="patch")(image)
    x = layers.Reshape((16, 8), name="rows")(x)
    y = layers.Dense(12, activation="gelu", name="wider")(x)
    y = layers.Dense(8, name="back")(y)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="sum")([x, y]))
    return keras.Model(image, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D(name="mean")(x)))


def rgb() -> Any:
    """A rectangular colour image, strides, average pooling, swish, a dense layer along the channels of maps."""
    return keras.Sequential(
        [
            keras.Input((20, 32, 3)),
            layers.Conv2D(8, (3, 5), strides=(2, 1), activation="swish", name="wide"),
            layers.AveragePooling2D((2, 3), name="mean_pool"),
            layers.Conv2D(6, 3, strides=2, padding="same", activation="swish", name="narrow"),
            layers.Dense(7, activation="relu", name="pixelwise"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="logits"),
        ]
    )


def default_names() -> Any:
    """Names that Keras gives; a nested network used twice, and a convolution shared by two places."""
    nested = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Conv2D(4, 3, padding="same"),
        ]
    )
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    once = nested(x)
    twice = nested(once)
    shared = layers.Conv2D(3, 3, activation="relu")
    x = layers.Concatenate()([shared(once), shared(twice)])
    x = layers.Conv2D(5, 3)(x)
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


def smooth() -> Any:
    """tanh and ELU: scores can be negative, and no region is dead; a sigmoid at the end."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(6, 3, activation="tanh", name="Tanh_1"),
            layers.MaxPooling2D(2, name="Pool_1"),
            layers.Conv2D(8, 3, activation="elu", name="Elu_2"),
            layers.Flatten(name="Flat"),
            layers.Dense(4, activation="sigmoid", name="Sigmoid_3"),
        ]
    )


def silent() -> Any:
    """The MNIST network's kind; no map of its last convolution ever responds."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(4, 3, activation="relu", name="Conv2D_1"),
            layers.MaxPooling2D(2, name="Max_Pool_1"),
            layers.Conv2D(6, 3, activation="relu", name="Conv2D_2"),
            layers.Flatten(name="Flatten"),
            layers.Dense(10, activation="softmax", name="Dense_1"),
        ]
    )
    seeded(model, 4)
    kernel, bias = model.get_layer("Conv2D_2").get_weights()
    model.get_layer("Conv2D_2").set_weights([kernel, np.full_like(bias, -100)])
    return model


AUGMENTATIONS: dict[str, dict[str, Any]] = {  # every one that is admitted, by its class
    "RandomFlip": {"mode": "horizontal", "seed": 3},
    "RandomRotation": {"factor": 0.1, "fill_mode": "nearest", "interpolation": "nearest"},
    "RandomZoom": {"height_factor": (-0.1, 0.2)},
    "RandomContrast": {"factor": 0.2},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1, "fill_mode": "wrap"},
    "RandomShear": {},
    "RandomPerspective": {},
    "RandomElasticTransform": {},
    "RandomCrop": {"height": 12, "width": 10},
    "RandomBrightness": {"factor": 0.2, "value_range": (0, 1)},
    "RandomHue": {"factor": 0.1},
    "RandomSaturation": {"factor": 0.2},
    "RandomSharpness": {"factor": 0.2},
    "RandomColorJitter": {"brightness_factor": 0.1},
    "RandomColorDegeneration": {"factor": 0.2},
    "RandomGrayscale": {},
    "RandomInvert": {},
    "RandomPosterization": {"factor": 4},
    "RandomGaussianBlur": {},
    "RandomErasing": {},
    "Solarization": {},
    "AugMix": {},
    "RandAugment": {},
    "CutMix": {},
    "MixUp": {},
}
SOME = ["RandomFlip", "RandomZoom", "RandomContrast", "RandomGrayscale"]  # Keras 3.15 cannot write all as .h5


def twin(inside: bool) -> Any:
    """Colour images, and what brings pixels to 0–1 inside of the network or outside; the weights are the same."""
    first = [layers.Rescaling(1 / 255, name="to_1")] if inside else []
    return keras.Sequential(
        [
            keras.Input((20, 20, 3), name="picture"),
            *first,
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(10, 3, activation="relu", name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(6, activation="softmax", name="classes"),
        ]
    )


def augmented(names: list[str]) -> Any:
    """The usual form of tutorials: a Sequential network of augmentation layers in front, and one layer on its own."""
    augmentation = keras.Sequential(
        [getattr(layers, name)(**AUGMENTATIONS[name], name=name) for name in names], name="data_augmentation"
    )
    image = keras.Input((12, 10, 3))
    x = layers.RandomFlip(name="alone")(augmentation(image))
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scaled")(x)
    x = layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.229**2, 0.224**2, 0.225**2], name="normed")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)))


# Networks that must be refused


def small(*before: Any, shape: tuple[int | None, ...] = (8, 8, 1), name: str = "conv", **options: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *before, layers.Conv2D(4, 3, name=name, **options)])


def with_lambda(marker: Path) -> Any:
    path = str(marker)
    return small(layers.Lambda(lambda x: (open(path, "w").close(), x)[1], name="sneaky"))


@keras.saving.register_keras_serializable("zoo")
class Custom(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2


def two_inputs() -> Any:
    one, other = keras.Input((8, 8, 1), name="one"), keras.Input((8, 8, 1), name="other")
    return keras.Model([one, other], layers.Conv2D(4, 3)(layers.Add()([one, other])))


def surplus_argument(source: Path, path: Path) -> None:
    """The network of `source`, a .keras file, with an argument that Keras' Conv2D does not know."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                config["config"]["layers"][1]["config"]["surplus"] = 5
                content = json.dumps(config).encode()
            new.writestr(name, content)


def spoilt(value: float) -> Any:
    model = seeded(small(), 5)
    kernel, bias = model.get_layer("conv").get_weights()
    bias[1] = value
    model.get_layer("conv").set_weights([kernel, bias])
    return model


# What TensorFlow computes


def reference(model: Any) -> dict[str, np.ndarray]:
    """Each layer of a flat network: `keras.Model(inputs, layer.output)`, and the same with a linear activation."""
    images = np.random.default_rng(6).normal(size=(IMAGES, *model.inputs[0].shape[1:])).astype(np.float32)
    outputs = {layer.name: layer.output for layer in model.layers if not isinstance(layer, layers.InputLayer)}
    for layer in model.layers:
        if isinstance(layer, layers.Activation):
            outputs[f"before:{layer.name}"] = layer.input
        elif getattr(layer, "activation", None) not in (None, keras.activations.linear):
            linear = type(layer).from_config(
                layer.get_config() | {"activation": "linear", "name": f"linear_{layer.name}"}
            )
            outputs[f"before:{layer.name}"] = linear(layer.input)
            linear.set_weights(layer.get_weights())
    arrays = keras.Model(model.inputs[0], outputs)(images, training=False)
    return {"images": images} | {name: np.asarray(array) for name, array in arrays.items()}


def reference_of_default_names(model: Any) -> dict[str, np.ndarray]:
    """The nested and shared layers are called one by one, in the order in which `default_names` puts them together."""
    images = np.random.default_rng(7).normal(size=(IMAGES, 12, 12, 1)).astype(np.float32)
    first, nested, shared, last, dense = (
        model.get_layer(name) for name in ("conv2d_2", "sequential", "conv2d_3", "conv2d_4", "dense")
    )
    found = {"conv2d_2": first(images)}
    for call in (1, 2):
        x = found["conv2d_2"] if call == 1 else found["sequential/conv2d_1@1"]
        found[f"sequential/conv2d@{call}"] = nested.layers[0](x)
        found[f"sequential/conv2d_1@{call}"] = nested.layers[1](found[f"sequential/conv2d@{call}"])
        found[f"conv2d_3@{call}"] = shared(found[f"sequential/conv2d_1@{call}"])
    found["concatenate"] = np.concatenate([found["conv2d_3@1"], found["conv2d_3@2"]], axis=-1)
    found["conv2d_4"] = last(found["concatenate"])
    found["flatten"] = np.asarray(found["conv2d_4"]).reshape(IMAGES, -1)
    found["dense"] = dense(found["flatten"])
    np.testing.assert_allclose(found["dense"], model(images), rtol=1e-4, atol=1e-5)  # put together rightly?
    return {"images": images} | {name: np.asarray(array) for name, array in found.items()}


def reference_of_augmented(model: Any) -> dict[str, np.ndarray]:
    """At inference an augmentation layer hands its input on; the layers behind are called one by one."""
    images = np.random.default_rng(8).uniform(0, 255, (IMAGES, 12, 10, 3)).astype(np.float32)
    names = [layer.name for layer in model.get_layer("data_augmentation").layers]
    found = {f"data_augmentation/{name}": images for name in names if name in AUGMENTATIONS} | {"alone": images}
    x = images
    for name in ("scaled", "normed", "conv", "flat", "logits"):
        x = found[name] = np.asarray(model.get_layer(name)(x))
    np.testing.assert_allclose(x, model(images, training=False), rtol=1e-4, atol=1e-5)
    return {"images": images} | found


def save(make: Callable[[], Any], path: Path) -> Any:
    keras.backend.clear_session()  # default names count anew
    model = make()
    model.save(path)
    return model


def main(folder: Path, others: list[Path]) -> None:
    good = {
        "branches.keras": lambda: seeded(branches(), 1),
        "branches.h5": lambda: seeded(branches(), 1),
        "rgb.keras": lambda: seeded(rgb(), 2),
        "default_names.keras": lambda: seeded(default_names(), 3),
        "tokens.keras": lambda: seeded(tokens(), 4),
        "smooth.keras": lambda: seeded(smooth(), 9),
        "silent.h5": silent,
        "twin_inside.keras": lambda: seeded(twin(True), 12),
        "twin_outside.keras": lambda: seeded(twin(False), 12),
        "augmented.keras": lambda: seeded(augmented(list(AUGMENTATIONS)), 10),
        "augmented.h5": lambda: seeded(augmented(SOME), 11),
    }
    described = {
        "default_names.keras": reference_of_default_names,
        "augmented.keras": reference_of_augmented,
        "augmented.h5": reference_of_augmented,
    }
    for name, make in good.items():
        save(make, folder / name)
        model = keras.models.load_model(folder / name, compile=False)
        np.savez(folder / f"{name}.npz", **described.get(name, reference)(model))
    for path in others:
        np.savez(folder / f"{path.name}.npz", **reference(keras.models.load_model(path, compile=False)))

    marker = folder / "lambda_ran"
    bad = {
        "lambda.keras": lambda: with_lambda(marker),
        "lambda.h5": lambda: with_lambda(marker),
        "custom.keras": lambda: small(Custom(name="mine")),
        "custom.h5": lambda: small(Custom(name="mine")),
        "no_convolution.keras": lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)]),
        "two_inputs.keras": two_inputs,
        "flat.keras": lambda: keras.Sequential([keras.Input((64,)), layers.Reshape((8, 8, 1)), layers.Conv2D(4, 3)]),
        "open.keras": lambda: small(shape=(None, None, 1)),
        "nan.keras": lambda: spoilt(np.nan),
        "infinite.h5": lambda: spoilt(-np.inf),
        "pixel.keras": lambda: keras.Sequential([keras.Input((1, 1, 1)), layers.Conv2D(4, 1)]),
        "unbuilt.keras": lambda: keras.Sequential([layers.Conv2D(4, 3)]),
    }
    for name, make in bad.items():
        save(make, folder / name)
    save(small, folder / "small.keras").save_weights(folder / "small.weights.h5")
    surplus_argument(folder / "small.keras", folder / "surplus.keras")
    marker.unlink()  # building the network ran the code


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
