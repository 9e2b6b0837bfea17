"""What a Keras file's configuration tells before TensorFlow starts: whose layers it holds, and what goes in."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_input import CONV, IMAGE, config_of, keras_h5, keras_zip, layer

import oip_torch
from oip_torch import InputError
from oip_torch.base.messages import last_words, one_line
from oip_torch.keras import file as keras_file

pytestmark = pytest.mark.usefixtures("in_this_process")

WRITERS = {".keras": keras_zip, ".h5": keras_h5}


def written(folder: Path, config: Any, ending: str) -> Path:
    return WRITERS[ending](folder / f"x{ending}", config)


# Whose layers are these?


@pytest.mark.parametrize("ending", WRITERS)
def test_augmentation_layers_are_admitted(tmp_path: Path, ending: str) -> None:
    flip = layer("RandomFlip", "flip", {"mode": "horizontal", "seed": None})
    inner = layer("Sequential", "augmentation", {"layers": [flip, layer("RandomRotation", "turn")]}, module="keras")
    same = layer("RandomCrop", "crop", {"height": 8, "width": 8})
    path = written(tmp_path, config_of(inner, same, CONV), ending)
    assert keras_file.read_keras_file(path).path == path


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("size", [(6, 6), (6, 8), (None, None)])
def test_a_crop_to_another_size_is_refused(tmp_path: Path, ending: str, size: tuple[int | None, int | None]) -> None:
    crop = layer("RandomCrop", "crop", {"height": size[0], "width": size[1]})
    path = written(tmp_path, config_of(crop, CONV), ending)
    with pytest.raises(InputError, match=r"layer 'crop' is a RandomCrop to \(.*, \(8, 8\); build the network without"):
        keras_file.read_keras_file(path)


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("kind", ["Attention", "AutoContrast", "LSTM", "Conv1D", "Conv3D", "StringLookup"])
def test_a_layer_of_keras_that_is_not_supported_is_no_other_code(tmp_path: Path, ending: str, kind: str) -> None:
    config = config_of(CONV, layer(kind, "odd"))
    if ending == ".h5":
        del config["config"]["layers"][-1]["module"]  # as Keras writes it there
    with pytest.raises(InputError, match=f"layer 'odd' uses the class '{kind}', which is Keras' own but not supp") as e:
        keras_file.read_keras_file(written(tmp_path, config, ending))
    assert "other code" not in str(e.value)


def test_a_new_layer_of_keras_is_known_by_its_module(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'OfNextYear', which is Keras' own but not supported yet"):
        keras_file.read_keras_file(written(tmp_path, config_of(CONV, layer("OfNextYear", "new")), ".keras"))


@pytest.mark.parametrize(
    ("name", "module"),
    [("Argmax", "keras.src.ops.numpy"), ("Relu", "keras.src.ops.numpy"), ("SlicingOpLambda", "keras")],
)
def test_an_operation_of_keras_is_no_other_code(tmp_path: Path, name: str, module: str) -> None:
    path = written(tmp_path, config_of(CONV, layer(name, "plus", module=module)), ".keras")
    match = rf"operation '{name}' \({module}\), which is Keras' own but not supported yet: expected arithmetic"
    with pytest.raises(InputError, match=match):
        keras_file.read_keras_file(path)


@pytest.mark.parametrize(
    ("name", "module"),
    [("Add", "keras.src.ops.numpy"), ("Relu", "keras.src.ops.nn"), ("LayerScale", "keras.src.applications.convnext")],
)
def test_operations_and_layers_of_other_modules_of_keras_are_admitted(tmp_path: Path, name: str, module: str) -> None:
    path = written(tmp_path, config_of(CONV, layer(name, "plus", module=module)), ".keras")
    assert not keras_file.read_keras_file(path).rewritten
    elsewhere = written(tmp_path, config_of(CONV, layer(name, "plus", module="keras.src.utils.file_utils")), ".keras")
    if name == "LayerScale":
        with pytest.raises(InputError, match=r"uses the class 'LayerScale' of keras\.src\.utils"):
            keras_file.read_keras_file(elsewhere)


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "os.system"}, r"layer 'c' uses the activation 'os\.system': expected one of Keras' own"),
        ({"kernel_initializer": "evil"}, "layer 'c' uses the initializer 'evil'"),
        ({"kernel_regularizer": "evil"}, "layer 'c' uses the regularizer 'evil'"),
        ({"kernel_constraint": "evil"}, "layer 'c' uses the constraint 'evil'"),
        (
            {"scale": {"class_name": "__numpy__", "config": {"value": [1], "dtype": "object"}}},
            "layer 'c' uses an array of 'object': expected numbers",
        ),
    ],
)
def test_functions_named_by_a_string_are_on_a_list(
    tmp_path: Path, ending: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        keras_file.read_keras_file(written(tmp_path, config_of(layer("Conv2D", "c", options)), ending))
    usual = {"activation": "relu", "kernel_initializer": "he_normal", "kernel_regularizer": "l1_l2"}
    keras_file.read_keras_file(written(tmp_path, config_of(layer("Conv2D", "c", usual)), ending))


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    "marks", [{"module": None, "registered_name": "Mine"}, {"module": "my_package.layers"}, {"module": None}]
)
def test_code_of_the_user_is_called_that(tmp_path: Path, ending: str, marks: dict[str, Any]) -> None:
    path = written(tmp_path, config_of(CONV, layer("Mine", "own", **marks)), ending)
    with pytest.raises(InputError, match=r"layer 'own' uses the class 'Mine': .* since other code is never run"):
        keras_file.read_keras_file(path)


@pytest.mark.parametrize("kind", ["TorchModuleWrapper", "JaxLayer", "TFSMLayer"])
def test_a_layer_for_other_code_is_never_supported(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"the class '{kind}': .* other code is never run"):
        keras_file.read_keras_file(written(tmp_path, config_of(CONV, layer(kind, "wrapped")), ".keras"))


# What goes in


def functional(*layers: Any) -> dict[str, Any]:
    return {"class_name": "Functional", "config": {"name": "f", "layers": list(layers)}}


def sequential(*layers: Any, **options: Any) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers), **options}}


OTHER = layer("InputLayer", "other", {"batch_shape": [None, 4, 4, 3]})
OF_KERAS_2_INPUT = layer("InputLayer", "image", {"batch_input_shape": [None, 8, 8, 1]})
FIRST = layer("Conv2D", "conv", {"batch_input_shape": [None, 8, 8, 1]})
SHAPES = [
    (sequential(IMAGE, CONV), (8, 8, 1)),
    (functional(IMAGE, CONV), (8, 8, 1)),
    (functional(CONV, IMAGE), (8, 8, 1)),
    (functional(OF_KERAS_2_INPUT, CONV), (8, 8, 1)),
    (sequential(FIRST), (8, 8, 1)),
    (sequential(functional(IMAGE, CONV), CONV), (8, 8, 1)),
    (sequential(sequential(CONV), CONV, build_input_shape=[None, 8, 8, 1]), (8, 8, 1)),
    (sequential(CONV), None),
    (functional(CONV), None),
    (sequential(layer("InputLayer", "i", {"batch_shape": [None, "8", 8, 1]}), CONV), None),
]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(("config", "shape"), SHAPES)
def test_the_input_shape_is_that_of_the_configuration(
    tmp_path: Path, ending: str, config: Any, shape: tuple[int, int, int] | None
) -> None:
    assert keras_file.read_keras_file(written(tmp_path, config, ending)).input_shape == shape


def test_the_input_shape_of_a_real_file(shipped: Path) -> None:
    file = keras_file.read_keras_file(shipped)
    assert (file.input_shape, file.rewritten) == ((28, 28, 1), ())


def images(*shape: int | None, kind: str = "float32") -> Any:
    return layer("InputLayer", "i", {"batch_shape": [None, *shape], "dtype": kind})


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    ("config", "match"),
    [
        (functional(IMAGE, OTHER, CONV), r"has 2 inputs \(image, other\): .*; recipe .*part\.save"),
        (sequential(images(784), CONV), r"shape \(None, 784\): .* recipe: .*keras\.Input\(\(28, 28, 1\)\);"),
        (sequential(images(100, 3), CONV), r"one-dimensional: .*keras\.Input\(\(1, 100, 3\)\); keras\.layers\.Conv2D"),
        (sequential(images(4, 8, 8, 1), CONV), r"shape \(None, 4, 8, 8, 1\): expected images"),
        (sequential(images(8, 8, None), CONV), "the number of channels fixed"),
        (sequential(images(None, None, 3), CONV), r"leaves height or width open .*--size 224 224"),
        (sequential(images(1, 1, 3), CONV), "takes images of one pixel"),
        (
            config_of(layer("Conv2D", "c", {"data_format": "channels_first"})),
            r"layer 'c' is channels_first: .*; recipe: keras\.config\.set_image_data_format",
        ),
    ],
)
def test_inputs_that_are_no_images_are_refused_with_a_recipe(
    tmp_path: Path, ending: str, config: Any, match: str
) -> None:
    path = written(tmp_path, config, ending)
    with pytest.raises(InputError, match=match) as error:
        oip_torch.convert(path, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_size_fills_what_is_open_and_nothing_else(tmp_path: Path, ending: str) -> None:
    for config in (
        sequential(images(None, None, 3), CONV),
        functional(images(None, None, 3), CONV) | {"config": {"layers": [images(None, None, 3), CONV]}},
        sequential(sequential(images(None, None, 3), CONV), CONV),
    ):
        config["config"]["input_layers"] = [["i", 0, 0]]
        file = keras_file.read_keras_file(written(tmp_path, config, ending), (20, 30))
        assert file.input_shape == (20, 30, 3)
        assert file.rewritten == ("images of 20×30, where height and width were open",)
        again = written(tmp_path, file.config, ending)  # the size stands in what is loaded
        assert keras_file.read_keras_file(again, (20, 30)).rewritten == ()
    part = written(tmp_path, sequential(images(None, 30, 3), CONV), ending)
    assert keras_file.read_keras_file(part, (20, 30)).input_shape == (20, 30, 3)
    with pytest.raises(InputError, match=r"takes images of None×30: size \(20, 20\) does not fit"):
        keras_file.read_keras_file(part, (20, 20))
    fixed = written(tmp_path, sequential(images(8, 8, 3), CONV), ending)
    with pytest.raises(InputError, match=r"takes images of 8×8, and size is \(20, 20\): expected no size"):
        oip_torch.convert(fixed, size=(20, 20), device="cpu")


@pytest.mark.parametrize("wrong", [3, (1, 2, 3), "20", (0, 3), (2.5, 3), (True, 3), object()])
def test_a_size_that_is_none_is_refused(shipped: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match="size"):
        oip_torch.convert(shipped, size=wrong, device="cpu")


def test_probes_of_another_size_are_refused(shipped: Path) -> None:
    with pytest.raises(InputError, match=r"the probes have the shape \(5, 20, 20, 1\): expected \(N, 28, 28, 1\)"):
        oip_torch.convert(shipped, probes=np.full((5, 20, 20), 77), device="cpu")


@pytest.mark.parametrize("ending", WRITERS)
def test_mixed_precision_becomes_float32(tmp_path: Path, ending: str) -> None:
    policy = {"class_name": "DTypePolicy", "module": "keras", "config": {"name": "mixed_float16"}}
    config = sequential(images(8, 8, 3, kind="uint8"), layer("Conv2D", "c", {"dtype": policy}))
    file = keras_file.read_keras_file(written(tmp_path, config, ending))
    assert file.rewritten == ("images of uint8 became float32", "mixed_float16 became float32")
    assert [entry["config"]["dtype"] for entry in file.config["config"]["layers"]] == ["float32", "float32"]


def test_hdf5_of_another_ending_is_read(tmp_path: Path) -> None:
    path = keras_h5(tmp_path / "network.model", config_of(CONV))
    assert keras_file.read_keras_file(path).input_shape == (8, 8, 1)


# Calls of convert, refused before TensorFlow starts


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(("mean", "std"), [([1, 2], 1), (1, [1, 2]), ([1, 2], [1, 2]), ([1] * 4, [1] * 4)])
def test_a_mean_for_other_channels_is_refused(tmp_path: Path, ending: str, mean: Any, std: Any) -> None:
    path = written(tmp_path, sequential(layer("InputLayer", "i", {"batch_shape": [None, 8, 8, 3]}), CONV), ending)
    with pytest.raises(
        InputError, match=r"mean and std: got \d and \d numbers, expected 1, or one for each of the 3 ch"
    ):
        oip_torch.convert(path, mean=mean, std=std, device="cpu")


@pytest.mark.parametrize(
    "wrong", ["1", "", object(), True, [], [[1, 2]], [[1], [2, 3]], {"r": 1}, 1j, ["1", "2"], [1, None], b"1"]
)
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_mean_that_is_no_number_is_refused(shipped: Path, name: str, wrong: Any) -> None:
    numbers: dict[str, Any] = {"mean": 1, "std": 1, name: wrong}
    with pytest.raises(InputError, match=f"^{name} is .*: expected a number, or a list of one per channel"):
        oip_torch.convert(shipped, **numbers, device="cpu")


@pytest.mark.parametrize(
    ("mean", "std"), [(float("nan"), 1), (1, float("inf")), ([1, np.nan], [1, 1]), (1, 0), (1, -2)]
)
def test_a_scale_that_is_not_finite_or_not_above_0_is_refused(shipped: Path, mean: Any, std: Any) -> None:
    with pytest.raises(InputError, match="expected finite numbers, and each std above 0"):
        oip_torch.convert(shipped, mean=mean, std=std, device="cpu")


@pytest.mark.parametrize("wrong", [None, 3, object(), torch.nn.Linear(1, 1), b"x.keras", ["x.keras"], UserList()])
def test_a_source_that_is_no_path_is_refused(wrong: Any) -> None:
    match = f"given as a {type(wrong).__name__}: expected the path of a file, .* save the model with model.save"
    for call in (oip_torch.convert, keras_file.read_keras_file):
        with pytest.raises(InputError, match=match):
            call(wrong)


@pytest.mark.parametrize("wrong", [3, object(), b"x.onnx", ["x.onnx"]])
def test_an_output_that_is_no_path_is_refused(shipped: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"output is a {type(wrong).__name__}: expected the path of the ONNX file"):
        oip_torch.convert(shipped, wrong, device="cpu")


# What others say, in one line

CONFIG = "config={'layers': [" + "{'module': 'keras.layers', 'class_name': 'Conv2D'}, " * 40 + "]}."
NESTED = f"Could not be deserialized. {CONFIG}\n\nException encountered: Error when deserializing {CONFIG}\n\n"
CALL = "Exception encountered when calling Dense.call().\n\n\x1b[1mAxis -1 is 7, not 8\x1b[0m\n\nArguments received by"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  two"), "one two"),
        (TypeError(f"{NESTED}Exception encountered: Unrecognized: {{'x': 5}}"), "Unrecognized: {'x': 5}"),
        (ValueError(f"{CALL} Dense.call():\n  • inputs={CONFIG}"), "Axis -1 is 7, not 8"),
        (
            ValueError(f"{CALL.replace('Dense', 'Sequential').split(chr(27))[0]}{CALL} a\n\nArguments received by b"),
            "Axis -1 is 7, not 8",
        ),
        (ValueError(f"No module 'x'. {CONFIG}"), "No module 'x'. config={'layers': …}."),
        (KeyError("conv"), "KeyError 'conv'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_alone_is_kept(error: Exception, line: str) -> None:
    assert one_line(error) == line


LONG = "word " * 200


@pytest.mark.parametrize("text", [f"{LONG} The reason.", f"The reason. {LONG}", f"{LONG}\n\nThe reason."])
def test_a_long_message_keeps_its_reason_at_either_end(text: str) -> None:
    line = one_line(ValueError(text))
    assert len(line) == 400
    assert "The reason." in line
    assert " … " in line


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("", "it said nothing"),
        ("W0000 00:00:17.1 a log\n\n", "it said nothing"),
        ("double free or corruption (out)\nI0000 00:00:17.1 a log\n", "double free or corruption (out)"),
        ('Traceback\n  File "x.py", line 1\nValueError: first\n  the rest\n', "ValueError: first the rest"),
        ("tf.errors.OpError: why\n\t [[{{node x}}]]\n", "tf.errors.OpError: why [[{{node x}}]]"),
    ],
)
def test_the_last_words_are_the_reason(stderr: str, words: str) -> None:
    assert last_words(stderr) == words
