"""Which of Keras' classes, functions and operations may a file name?

Closed lists: what is on none of them is refused by name, and no module is looked up for it. Everything here is Keras'
own, computes what its configuration says and reads no file.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AUGMENTATIONS",
    "CONTAINERS",
    "CONVOLUTIONS",
    "MODULES",
    "PLAIN",
    "is_operation",
    "module_of_operation",
    "refusal",
    "refused_value",
]

CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"})
"""Keras layer classes that make feature maps."""

AUGMENTATIONS = frozenset(  # Keras' own, which hand their input on at inference: measured with Keras 3.15.1
    "RandomFlip RandomRotation RandomZoom RandomTranslation RandomShear RandomPerspective RandomElasticTransform "
    "RandomCrop RandomContrast RandomBrightness RandomHue RandomSaturation RandomSharpness RandomColorJitter "
    "RandomColorDegeneration RandomGrayscale RandomInvert RandomPosterization RandomGaussianBlur RandomErasing "
    "Solarization AugMix RandAugment CutMix MixUp".split()
)
"""Keras layer classes that hand their input on at inference."""

_LAYERS = (
    CONVOLUTIONS
    | AUGMENTATIONS
    | frozenset(
        "InputLayer Dense MaxPooling2D AveragePooling2D GlobalMaxPooling2D GlobalAveragePooling2D BatchNormalization "
        "LayerNormalization GroupNormalization UnitNormalization RMSNormalization Activation ReLU LeakyReLU PReLU ELU "
        "Softmax Dropout SpatialDropout1D SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout "
        "ActivityRegularization Flatten Reshape Permute RepeatVector ZeroPadding2D Cropping2D CenterCrop UpSampling2D "
        "Resizing Add Subtract Multiply Average Maximum Minimum Concatenate Dot Rescaling Normalization Identity "
        "GlobalAveragePooling1D GlobalMaxPooling1D MultiHeadAttention".split()
    )
)
MODULES = {
    "LayerScale": "keras.src.applications.convnext",
    "StochasticDepth": "keras.src.applications.convnext",
    "CustomScaleLayer": "keras.src.applications.inception_resnet_v2",
}
"""Layer classes of Keras' own networks, and the only module that each is taken from."""

CONTAINERS = frozenset({"Sequential", "Functional", "Model"})
"""Classes of networks."""

_INITIALIZERS = frozenset(
    "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling Orthogonal Identity GlorotNormal "
    "GlorotUniform HeNormal HeUniform LecunNormal LecunUniform".split()
)
_REGULARIZERS = frozenset("L1 L2 L1L2 OrthogonalRegularizer".split())
_CONSTRAINTS = frozenset("MaxNorm NonNeg UnitNorm MinMaxNorm".split())
_MARKS = frozenset("__keras_tensor__ __tuple__ __numpy__ __tensor__ __slice__ __ellipsis__".split())
PLAIN = _INITIALIZERS | _REGULARIZERS | _CONSTRAINTS | _MARKS | {"DTypePolicy", "Policy"}
"""Initialisers, regularisers, constraints, types of numbers and Keras' own marks: no code in them."""

_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish sigmoid hard_sigmoid hard_silu hard_swish tanh "
    "hard_tanh softmax log_softmax softplus softsign exponential mish log_sigmoid squareplus tanh_shrink".split()
)
_OPERATIONS = {
    "keras.src.ops.numpy": frozenset(
        "Absolute Add Clip Concatenate Divide Exp ExpandDims GetItem Log Max Maximum Mean Min Minimum Multiply "
        "Negative Power Reciprocal Reshape Sqrt Square Squeeze Subtract Sum Tanh Transpose TrueDivide".split()
    ),
    "keras.src.ops.nn": frozenset(
        "Relu Relu6 LeakyRelu Elu Selu Celu Gelu Silu Sigmoid HardSigmoid HardSilu Softplus Softsign LogSigmoid "
        "Softmax LogSoftmax".split()
    ),
    "keras.src.ops.math": frozenset({"Rsqrt"}),
}
_NUMBERS = frozenset("float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())
_NOT_YET = frozenset(  # Keras' own as well; an HDF5 file names no module that would tell them from other code
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D "
    "AdaptiveMaxPooling2D AdaptiveMaxPooling3D AdditiveAttention Attention AutoContrast AveragePooling1D "
    "AveragePooling3D Bidirectional CategoryEncoding ContrastLimitedAdaptiveHistogramEqualization Conv1D "
    "Conv1DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping3D DepthwiseConv1D "
    "Discretization EinsumDense Embedding Equalization GRU GRUCell GlobalAveragePooling3D "
    "GlobalMaxPooling3D GroupQueryAttention HashedCrossing Hashing IntegerLookup LSTM LSTMCell "
    "Masking MaxNumBoundingBoxes MaxPooling1D MaxPooling3D MelSpectrogram Pipeline "
    "RNN ReversibleEmbedding STFTSpectrogram SeparableConv1D SimpleRNN "
    "SimpleRNNCell SpatialDropout3D SpectralNormalization StackedRNNCells TensorFlowOpLayer "
    "StringLookup TextVectorization ThresholdedReLU TimeDistributed UpSampling1D UpSampling3D "
    "ZeroPadding1D ZeroPadding3D".split()
)
_OPERATIONS_OF_KERAS_2 = frozenset({"TFOpLambda", "SlicingOpLambda"})  # x + y, x / 255 and the like
_CODE = frozenset("Lambda TorchModuleWrapper JaxLayer FlaxLayer TFSMLayer".split())  # Keras' own, for other code
_SUPPORTED = "layers of convolution, pooling, normalisation, activation, augmentation, merging and Dense"
_ANEW = (
    "recipe: build the network anew with Keras' own layers or keras.ops in its place, "
    "new.set_weights(old.get_weights()), new.save('model.keras')"
)
_ONE_DIMENSIONAL = (
    "; recipe: image = keras.Input((1, steps, channels)); conv = keras.layers.Conv2D(filters, (1, size)) in place of "
    "each Conv1D(filters, size); conv.set_weights([kernel[None], bias])"
)


def is_operation(entry: dict[str, Any]) -> bool:
    """Whether an entry that names no module, as in HDF5, is an operation and not the layer of the same name.

    Of an operation Keras stores its own arguments alone, of a layer also whether it is trainable.
    """
    name, options = entry.get("class_name"), entry.get("config")
    known = any(name in names for names in _OPERATIONS.values())
    return known and "module" not in entry and isinstance(options, dict) and "trainable" not in options


def module_of_operation(name: str) -> str:
    """The module that an operation on the list is taken from."""
    return next(module for module, names in _OPERATIONS.items() if name in names)


def refusal(entry: dict[str, Any]) -> str | None:
    """What is wrong with the class that an entry of a configuration names, and what was expected; None: nothing."""
    name, registered = entry["class_name"], entry.get("registered_name")
    module = entry.get("module") or "keras"
    expected = "expected Keras' built-in image layers only, since other code is never run"
    if name == "function" or module == "builtins":
        function = entry.get("config")
        known = isinstance(function, str) and function in _ACTIVATIONS
        if known and name == "function" and module == "builtins" and registered in (None, name, function):
            return None
        return f"the function {function!r}: {expected}; {_ANEW}"
    if name == "Lambda":
        return (
            f"the Lambda code: {expected}; recipe: write what it computes with keras.ops, as in x / 255 or "
            "keras.ops.relu(x), in a keras.Model(image, output), set_weights, save"
        )
    own = isinstance(module, str) and (module == "keras" or module.startswith("keras.")) and registered in (None, name)
    operation = isinstance(module, str) and module.startswith("keras.src.ops")
    if own and (operation or name in _OPERATIONS_OF_KERAS_2):
        if operation and name in _OPERATIONS.get(module, ()):
            return None
        return (
            f"the operation {name!r} ({module}), which is Keras' own but not supported yet: expected arithmetic and "
            "activations, such as x + y, x / 255 or keras.ops.relu(x), or layers"
        )
    if own and name in MODULES:
        return None if module == MODULES[name] else f"the class {name!r} of {module}: {expected}"
    if own and name in _MARKS:
        return _refused_mark(entry)
    if own and (name in _LAYERS or name in CONTAINERS or name in PLAIN):
        return None
    # Of a class that is on none of the lists the module tells whose it is, where the file names one.
    if own and name not in _CODE and (name in _NOT_YET or _is_layer_module(entry.get("module"))):
        recipe = _ONE_DIMENSIONAL if name == "Conv1D" else ""
        return f"the class {name!r}, which is Keras' own but not supported yet: expected {_SUPPORTED}{recipe}"
    return f"the class {registered or name!r}: {expected}; {_ANEW}"


def refused_value(key: str, value: Any) -> str | None:
    """What is wrong with a function or class that an argument names; None: nothing, or it is an entry of its own.

    Keras calls what it finds under a name. So there is a mere name of the list, an entry with a class, or nothing.
    """
    if key == "interpolation":
        ways = "nearest or bilinear, since torch computes no other as TensorFlow does"
        return None if value in ("nearest", "bilinear") else f"the interpolation {_told(value)}: expected {ways}"
    for ending, classes in (
        ("activation", _ACTIVATIONS),
        ("_initializer", _INITIALIZERS | {"Uniform", "Normal"}),
        ("_regularizer", _REGULARIZERS),
        ("_constraint", _CONSTRAINTS),
    ):
        if not key.endswith(ending) or value is None:
            continue
        if isinstance(value, dict) and isinstance(value.get("class_name"), str):
            continue  # is looked at by itself
        known = isinstance(value, str) and (
            value in classes
            if ending == "activation"
            else value.replace("_", "").lower() in {name.lower() for name in classes}
        )
        if not known:
            return f"the {ending.lstrip('_')} {_told(value)}: expected one of Keras' own"
    return None


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 60 else repr(value)[:60]


def _refused_mark(entry: dict[str, Any]) -> str | None:
    options = entry.get("config")
    if entry["class_name"] in ("__numpy__", "__tensor__"):
        kind = options.get("dtype") if isinstance(options, dict) else None
        if not isinstance(kind, str) or kind not in _NUMBERS:
            return f"an array of {kind!r}: expected numbers"
    return None


def _is_layer_module(module: Any) -> bool:
    return isinstance(module, str) and (module == "keras.layers" or module.startswith("keras.src.layers."))
