"""One tiny Keras network for each kind of layer and configuration: `python tests/keras_kinds.py FOLDER [KIND …]`.

Builds, seeds and saves them, as KIND.keras if the kind is no way to save, and writes FOLDER/files.json, {kind: keywords
of `convert`}. Where kinds are named, KIND.npz is what Keras computes for some images; with --list they are printed. In
a process of its own, as keras_zoo.py. `scripts/network_tables.py` makes a table of what becomes of them, and the tests
convert a sample.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from keras_zoo import seeded

SIZE = (14, 13)


def around(
    *middle: Any,
    channels: int = 3,
    size: tuple[int | None, int | None] = SIZE,
    scale: float = 1 / 127.5,
    **options: Any,
) -> Any:
    """Pixels times `scale`, a convolution, what is tried, and another convolution."""
    first = layers.Conv2D(6, 3, activation="relu", name="first", **options)
    last = layers.Conv2D(4, 3, activation="relu", name="last", **options)
    scaled = layers.Rescaling(scale, name="scaled")
    return keras.Sequential([keras.Input((*size, channels), name="image"), scaled, first, *middle, last])


def classifier(*end: Any) -> Any:
    """A convolution, what is tried, and a softmax."""
    first = layers.Conv2D(6, 3, activation="relu", name="first")
    return keras.Sequential([keras.Input((*SIZE, 3)), first, *end, layers.Dense(5, activation="softmax", name="end")])


def of(change: Callable[[Any], Any], before: Callable[[Any], Any] | None = None) -> Any:
    """A convolution, then a function of its maps; or a function of the image first."""
    image = keras.Input((*SIZE, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="first")(before(image) if before else image)
    return keras.Model(image, layers.Conv2D(4, 3, name="last")(change(x)))


def with_(kind: str, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: around(getattr(layers, kind)(*args, **options, name="tried"))


def activated(name: str) -> Callable[[], Any]:
    return lambda: around(layers.Activation(name, name="tried"))


def normalised() -> Any:
    layer = layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 3100.0, 3200.0], name="tried")
    return keras.Sequential([keras.Input((*SIZE, 3)), layer, layers.Conv2D(4, 3, activation="relu", name="last")])


def adapted() -> Any:
    layer = layers.Normalization(name="tried")
    layer.adapt(np.random.default_rng(1).normal(100, 40, (50, *SIZE, 3)))
    return keras.Sequential([keras.Input((*SIZE, 3)), layer, layers.Conv2D(4, 3, activation="relu", name="last")])


def attention() -> Any:
    image = keras.Input((*SIZE, 3))
    x = layers.Conv2D(8, 3, strides=3, name="first")(image)
    x = layers.Reshape((-1, 8), name="tokens")(x)
    x = layers.Add(name="sum")([x, layers.MultiHeadAttention(2, 4, name="tried")(x, x)])
    return keras.Model(image, layers.Dense(4, name="end")(layers.GlobalAveragePooling1D(name="mean")(x)))


def dot() -> Any:
    image = keras.Input((*SIZE, 3))
    maps = [layers.Conv2D(6, 3, activation="relu", name=name)(image) for name in ("first", "second")]
    vectors = [layers.GlobalAveragePooling2D()(x) for x in maps]
    return keras.Model(image, layers.Dot(axes=1, normalize=True, name="tried")(vectors))


def squeeze_and_excite() -> Any:
    def change(x: Any) -> Any:
        gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
        return layers.Multiply(name="tried")([x, layers.Conv2D(6, 1, activation="hard_sigmoid", name="gate")(gate)])

    return of(change)


def two_outputs() -> Any:
    image = keras.Input((*SIZE, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="first")(image)
    flat = layers.Flatten(name="flat")(x)
    return keras.Model(
        image, [layers.Dense(3, name="one")(flat), layers.Dense(4, activation="softmax", name="two")(flat)]
    )


def two_inputs() -> Any:
    one, other = keras.Input((8, 8, 1), name="one"), keras.Input((8, 8, 1), name="other")
    return keras.Model([one, other], layers.Conv2D(4, 3)(layers.Add()([one, other])))


def dense_front() -> Any:
    return keras.Sequential([keras.Input((196,)), layers.Reshape((14, 14, 1)), layers.Conv2D(4, 3, name="last")])


def one_dimensional() -> Any:
    return keras.Sequential([keras.Input((50, 3)), layers.Conv1D(4, 3, name="tried")])


def channels_first() -> Any:
    return keras.Sequential([keras.Input((3, *SIZE)), layers.Conv2D(4, 3, data_format="channels_first", name="tried")])


def nested() -> Any:
    """A Sequential inside of a Functional inside of a Sequential."""
    inner = keras.Sequential([layers.Conv2D(5, 3, padding="same", activation="relu", name="deep")], name="inner")
    image = keras.Input((12, 11, 6))
    middle = keras.Model(image, layers.Add(name="sum")([inner(image), layers.Conv2D(5, 1, name="short")(image)]))
    return around(middle)


def shared() -> Any:
    """A block that runs twice, and one ReLU for both of its runs."""
    conv, norm = layers.Conv2D(6, 3, padding="same", name="tried"), layers.BatchNormalization(name="norm")
    relu = layers.ReLU(name="relu")
    return of(lambda x: relu(norm(conv(relu(norm(conv(x)))))))


def block() -> Any:
    """Convolution, normalisation, activation and dropout, a layer each."""
    return around(
        layers.Conv2D(6, 3, use_bias=False, name="tried"),
        layers.BatchNormalization(name="norm"),
        layers.Activation("relu", name="relu"),
        layers.SpatialDropout2D(0.2, name="drop"),
        layers.GaussianNoise(0.1, name="noise"),
    )


def u_net() -> Any:
    """Down, up, and the maps of before beside them."""

    def change(x: Any) -> Any:
        down = layers.Conv2D(8, 3, padding="same", activation="relu", name="bottom")(layers.MaxPooling2D(2)(x))
        up = layers.Conv2DTranspose(6, 2, strides=2, padding="same", name="up")(down)
        return layers.Concatenate(name="tried")([layers.Cropping2D(((0, 0), (0, 1)))(x), up])

    return of(change)


def bytes_in() -> Any:
    image = keras.Input((*SIZE, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255.0, name="scaled")(image)
    return keras.Model(image, layers.Conv2D(4, 3, activation="relu", name="last")(x))


def preprocessed() -> Any:
    """What a tutorial puts in front: sizes, scales, augmentation."""
    first = layers.Conv2D(6, 3, activation="relu", name="first")
    front = [layers.Resizing(20, 18), layers.Rescaling(1 / 127.5, offset=-1), layers.RandomFlip("horizontal")]
    more = [layers.RandomZoom(0.1), layers.RandomContrast(0.1)]
    return keras.Sequential([keras.Input((*SIZE, 3)), *front, *more, first, layers.Conv2D(4, 3, name="last")])


def outputs_by_name() -> Any:
    image = keras.Input((*SIZE, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="first")(image)
    maps = layers.Conv2D(2, 1, activation="sigmoid", name="mask")(x)
    classes = layers.Dense(4, activation="softmax", name="classes")(layers.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(image, {"classes": classes, "mask": maps})


@keras.saving.register_keras_serializable("mine")
class Doubled(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2


@keras.saving.register_keras_serializable("mine")
def doubled(x: Any) -> Any:
    return ops.relu(x) * 2


@keras.saving.register_keras_serializable("mine")
class Subclassed(keras.Model):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.conv = layers.Conv2D(4, 3, name="conv")

    def call(self, x: Any) -> Any:
        return self.conv(x)

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.built = True


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, *SIZE, 3), np.float32))
    return model


def keras_application_block(module: str, name: str, *args: Any) -> Callable[[], Any]:
    def make() -> Any:
        import importlib

        return around(getattr(importlib.import_module(f"keras.src.applications.{module}"), name)(*args, name="tried"))

    return make


def rgb_to_bgr(image: Any) -> Any:
    return image[..., ::-1] - np.array([103.9, 116.8, 123.7], np.float32)


KINDS: dict[str, Callable[[], Any]] = {
    "Conv2D, valid": with_("Conv2D", 5, 3),
    "Conv2D, same, strides 2": with_("Conv2D", 5, 3, strides=2, padding="same"),
    "Conv2D, dilated": with_("Conv2D", 5, 3, dilation_rate=2, padding="same"),
    "Conv2D, grouped": with_("Conv2D", 6, 3, groups=3),
    "DepthwiseConv2D": with_("DepthwiseConv2D", 3, padding="same", depth_multiplier=2),
    "SeparableConv2D": with_("SeparableConv2D", 5, 3, padding="same"),
    "Conv2DTranspose, valid": with_("Conv2DTranspose", 5, 3, strides=2),
    "Conv2DTranspose, same, strides 2, kernel 3": with_("Conv2DTranspose", 5, 3, strides=2, padding="same"),
    "Conv2DTranspose, same, strides 2, kernel 5": with_("Conv2DTranspose", 5, 5, strides=2, padding="same"),
    "Conv1D network": one_dimensional,
    "Dense along channels": with_("Dense", 5, activation="relu"),
    "MaxPooling2D, same, odd size": with_("MaxPooling2D", 2, padding="same"),
    "AveragePooling2D, valid": with_("AveragePooling2D", 2),
    "AveragePooling2D, same, odd size": with_("AveragePooling2D", 2, padding="same"),
    "AveragePooling2D, same, window 3, strides 1": with_("AveragePooling2D", 3, strides=1, padding="same"),
    "GlobalAveragePooling2D": lambda: classifier(layers.GlobalAveragePooling2D(name="tried")),
    "GlobalMaxPooling2D": lambda: classifier(layers.GlobalMaxPooling2D(name="tried")),
    "BatchNormalization": with_("BatchNormalization"),
    "LayerNormalization": with_("LayerNormalization"),
    "GroupNormalization": with_("GroupNormalization", 3),
    "UnitNormalization": with_("UnitNormalization"),
    "RMSNormalization": with_("RMSNormalization"),
    "Normalization, given": normalised,
    "Normalization, adapted": adapted,
    "Rescaling": lambda: of(lambda x: x, layers.Rescaling(1 / 127.5, offset=-1, name="tried")),
    **{
        f"activation {name}": activated(name)
        for name in (
            *("relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "sigmoid", "hard_sigmoid", "hard_silu"),
            *("tanh", "softplus", "softsign", "exponential", "mish", "log_sigmoid", "squareplus", "softmax"),
        )
    },
    "softsign of large numbers": lambda: around(layers.Activation("softsign", name="tried"), scale=1.0),
    "ReLU(max_value=6, negative_slope=0.1)": with_("ReLU", max_value=6, negative_slope=0.1),
    "PReLU, shared axes": with_("PReLU", shared_axes=[1, 2]),
    "ZeroPadding2D and Cropping2D": lambda: around(layers.ZeroPadding2D(2, name="tried"), layers.Cropping2D((1, 2))),
    "UpSampling2D, nearest": with_("UpSampling2D", 2),
    "UpSampling2D, bilinear": with_("UpSampling2D", 2, interpolation="bilinear"),
    "UpSampling2D, bicubic": with_("UpSampling2D", 2, interpolation="bicubic"),
    "Resizing, bilinear": with_("Resizing", 20, 22),
    "Resizing, nearest": with_("Resizing", 24, 22, interpolation="nearest"),
    "CenterCrop": with_("CenterCrop", 8, 9),
    "RandomFlip, RandomRotation": lambda: around(layers.RandomFlip(name="flip"), layers.RandomRotation(0.1)),
    "Dropout kinds": lambda: around(
        layers.Dropout(0.5), layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.1), layers.AlphaDropout(0.1)
    ),
    "Add, Multiply, Concatenate": lambda: of(
        lambda x: layers.Concatenate(name="tried")([layers.Add()([x, x]), layers.Multiply()([x, x])])
    ),
    "Dot": dot,
    "squeeze and excite": squeeze_and_excite,
    "MultiHeadAttention": attention,
    "Permute, RepeatVector": lambda: classifier(
        layers.Permute((3, 1, 2), name="tried"), layers.Flatten(), layers.RepeatVector(2), layers.Flatten()
    ),
    "LayerScale (ConvNeXt)": keras_application_block("convnext", "LayerScale", 1e-1, 6),
    "CustomScaleLayer (InceptionResNet)": lambda: of(
        lambda x: __import__("keras.src.applications.inception_resnet_v2", fromlist=["x"]).CustomScaleLayer(
            0.3, name="tried"
        )([x, x])
    ),
    "keras.ops: x + y, x / 255": lambda: of(lambda x: x + x * 0.5 - 1, lambda image: image / 255.0),
    "keras.ops.relu, relu6(x + 3) / 6": lambda: of(lambda x: ops.relu(x) * (ops.relu6(x + 3) / 6)),
    "preprocess_input: RGB to BGR": lambda: of(lambda x: x, rgb_to_bgr),
    "keras.ops.mean, reshape, concatenate": lambda: of(
        lambda x: ops.concatenate([x, x * ops.reshape(ops.mean(x, axis=(1, 2)), (-1, 1, 1, 6))], axis=-1)
    ),
    "2 channels": lambda: around(channels=2),
    "5 channels": lambda: around(channels=5),
    "12 channels": lambda: around(channels=12),
    "height and width open": lambda: around(size=(None, None)),
    "mixed_float16": lambda: around(dtype="mixed_float16"),
    "float64": lambda: around(dtype="float64"),
    "two outputs": two_outputs,
    "two inputs": two_inputs,
    "Dense front (196 → Reshape)": dense_front,
    "channels_first": channels_first,
    "Lambda": lambda: around(layers.Lambda(lambda x: x * 2, name="tried")),
    "LSTM": lambda: classifier(layers.Reshape((12, -1), name="rows"), layers.LSTM(4, name="tried")),
    "name with a space": lambda: around(layers.Conv2D(4, 3, name="two words")),
    "Sequential in Functional in Sequential": nested,
    "shared layers, run twice": shared,
    "Activation, Dropout … as layers": block,
    "U-Net": u_net,
    "images of uint8": bytes_in,
    "Resizing, Rescaling, augmentation in front": preprocessed,
    "dictionary of outputs": outputs_by_name,
    "names in other scripts": lambda: around(layers.Conv2D(4, 3, name="層_é")),
    "BatchNormalization without scale and center": with_("BatchNormalization", scale=False, center=False),
    "Conv2D, same, kernel 4, strides 3": with_("Conv2D", 5, 4, strides=3, padding="same"),
    "Conv2D, kernel 1×5, bias off": with_("Conv2D", 5, (1, 5), use_bias=False),
    "DepthwiseConv2D, strides 2, kernel 4": with_("DepthwiseConv2D", 4, strides=2, padding="same"),
    "SeparableConv2D, dilated, multiplier 2": with_("SeparableConv2D", 5, 3, dilation_rate=2, depth_multiplier=2),
    "Conv2DTranspose, dilated": with_("Conv2DTranspose", 5, 3, dilation_rate=2),
    "Conv2DTranspose, output_padding": with_("Conv2DTranspose", 5, 3, strides=2, output_padding=1),
    "MaxPooling2D, same, window 2, strides 1": with_("MaxPooling2D", 2, strides=1, padding="same"),
    "AveragePooling2D, window 3, strides 2": with_("AveragePooling2D", 3, strides=2),
    "ZeroPadding2D, uneven": with_("ZeroPadding2D", ((1, 2), (0, 3))),
    "UpSampling2D, 2×3": with_("UpSampling2D", (2, 3)),
    "UpSampling2D, lanczos5": with_("UpSampling2D", 2, interpolation="lanczos5"),
    "GlobalAveragePooling2D(keepdims=True)": lambda: classifier(
        layers.GlobalAveragePooling2D(keepdims=True, name="tried"), layers.Flatten()
    ),
    "LayerNormalization of whole maps": with_("LayerNormalization", axis=[1, 2, 3]),
    "TimeDistributed": lambda: around(layers.TimeDistributed(layers.Dense(4), name="tried")),
    "layer of one's own, registered": lambda: around(Doubled(name="tried")),
    "activation of one's own, registered": lambda: around(layers.Conv2D(4, 3, activation=doubled, name="tried")),
    "subclassed network": subclassed,
    ".h5": around,
    ".hdf5": around,
    ".model (HDF5)": around,
    "weights alone": around,
    "weights and --architecture": around,
    "SavedModel (a folder)": around,
    ".tflite": around,
    ".pb": around,
    ".pt": around,
    ".json": around,
}


def saved(model: Any, kind: str, folder: Path) -> dict[str, str]:
    """Save a kind's network as that kind is saved: where it lies, as keywords of `convert`."""
    name = file_name(kind)
    if kind in (".h5", ".hdf5", ".model (HDF5)"):
        model.save(folder / f"{name}.h5")
        ending = kind.split()[0]
        return {"source": str((folder / f"{name}.h5").rename(folder / f"network{ending}"))}
    if kind.startswith("weights"):
        model.save_weights(folder / f"{name}.weights.h5")
        files = {"source": str(folder / f"{name}.weights.h5")}
        if kind.endswith("architecture"):
            (folder / f"{name}.json").write_text(model.to_json(), encoding="utf-8")
            files["architecture"] = str(folder / f"{name}.json")
        return files
    if kind.startswith("SavedModel"):
        model.export(folder / name, verbose=False)
        return {"source": str(folder / name)}
    if kind == ".json":
        (folder / "network.json").write_text(model.to_json(), encoding="utf-8")
        return {"source": str(folder / "network.json")}
    if kind in (".tflite", ".pb", ".pt"):  # told by their names: nothing of them is read
        (folder / f"network{kind}").write_bytes(b"data")
        return {"source": str(folder / f"network{kind}")}
    model.save(folder / f"{name}.keras")
    return {"source": str(folder / f"{name}.keras")}


def file_name(kind: str) -> str:
    """Of a kind's file, without the ending."""
    return "".join(letter if letter.isalnum() else "_" for letter in kind)


def main(folder: Path, kinds: list[str]) -> None:
    files = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        if not kinds or kind in kinds:
            keras.backend.clear_session()
            model = seeded(make(), number)
            files[kind] = saved(model, kind, folder)
            source = Path(files[kind]["source"])
            if kinds and source.suffix == ".keras":
                model = keras.models.load_model(source, compile=False)
                images = np.random.default_rng(number).uniform(0, 255, (3, *SIZE, 3)).astype(np.float32)
                np.savez(folder / f"{file_name(kind)}.npz", images=images, output=model(images, training=False))
    (folder / "files.json").write_text(json.dumps(files), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(KINDS))
        sys.exit()
    main(Path(sys.argv[1]), sys.argv[2:])
