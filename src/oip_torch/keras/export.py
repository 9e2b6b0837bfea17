"""How is a Keras file exported, and what does TensorFlow compute for it? (own process, with TensorFlow)

Runs as `python -m oip_torch.keras.export FOLDER`, in a process of its own: the TensorFlow wheel and torch crash when
both are loaded (tensorflow#124205), and an untrusted file is better opened where it can do no harm.

The folder holds `job.json` (see `Job`) and receives `model.onnx`, its large weights and `layers.json`, and then, file
by file, what TensorFlow computes on the probes: each layer for two images at a time, and a gradient in the end. Stdout
tells of it, a line each: "STAGE" is what is being done, ANSWER + NAME is a file that is ready; the next one is made
once a line comes on stdin, so that of a large network no more lies anywhere at one time than the reader wants.
A network that cannot be exported leaves `error.json` ({"kind": "InputError"|"ConversionError"|"Exception", "message":
TEXT}) and exit code 2.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line
from oip_torch.keras.classes import CONVOLUTIONS
from oip_torch.keras.graph import to_onnx
from oip_torch.keras.network import Recorder, in_dtype, load_network, part_with
from oip_torch.network.domain import Domain, find_domain
from oip_torch.network.probes import BEFORE, digits, noise

ANSWER = "\x1f"
"""What a line of stdout begins with that names a file."""
_LEFT_OUT = ("jax", "pandas", "sklearn", "matplotlib", "IPython", "scipy")
"""What TensorFlow and Keras import where it is installed, and do without elsewhere: 200 MiB, and half of the time."""
AT_A_TIME = 2
"""Images; more than one, so that a graph that mixes its images shows."""


class Job(TypedDict):
    """What is asked of the process.

    `architecture`: the file of the configuration, or None. `size`: (height, width) of a network that leaves them open,
    or None. `noise`, `digits`: how many probes of each.
    `probes`: a file with images of pixel values in the place of digits, or None. `domain`: what is known of the domain.
    `dtype`: "float32"; or "float64" to have answers alone, computed in that: the layers in `doubtful` (name → index),
    and the gradient of `target` (the layer's name, its index, a map, 1 for before the activation), or None.
    """

    model: str
    architecture: NotRequired[str | None]
    size: list[int] | None
    noise: int
    digits: int
    probes: str | None
    domain: dict[str, Any]
    dtype: str
    doubtful: NotRequired[dict[str, int]]
    target: NotRequired[tuple[str, int, int, int] | None]


def _probes(job: Job, shape: tuple[int, int, int], domain: Domain) -> np.ndarray:
    """Images in the network's own domain, noise first: far from there a layer may be silent, or show biases alone."""
    if job["probes"] is not None:
        pixels = np.load(job["probes"], allow_pickle=False)
        others = np.asarray(domain.of_pixels(pixels), np.float32)
    else:
        others = digits(job["digits"], shape, domain)
    return np.concatenate([domain.to_input(noise(job["noise"], shape)), others])


def _answers(recorder: Recorder, images: np.ndarray) -> Iterator[dict[str, Any]]:
    """What the network computes: every layer before and after its activation (NHWC), images by two, and a gradient.

    The gradient is that of one map's mean with respect to each image, for the deepest convolution and the map that
    responds most; before the activation where no map of the layer responds at all.
    """
    import tensorflow as tf

    deepest, silent = 0, True
    sums: dict[str, Any] = {}
    for part in _by_two(images):
        calls, _ = recorder.run(tf.constant(part))
        deepest = max(i for i, call in enumerate(calls) if call["kind"] in CONVOLUTIONS)
        arrays: dict[str, Any] = {"images": part}  # TensorFlow's own: each becomes NumPy's once it is written
        for index, call in enumerate(calls):
            arrays |= _outputs(call, index)
        silent = silent and not np.any(arrays[f"{deepest}"])
        for key, array in (("after", arrays[f"{deepest}"]), ("before", arrays.get(f"{BEFORE}{deepest}"))):
            if array is not None:
                sums[key] = sums.get(key, 0) + np.asarray(array, np.float64).mean((1, 2)).sum(0)
        name = calls[deepest]["id"]
        del calls
        yield arrays
        del arrays
    recorder.calls.clear()
    which = "before" if silent and "before" in sums else "after"
    strongest = int(np.argmax(sums[which]))

    yield _gradient(recorder, images, (name, deepest, strongest, int(which == "before")))


def _answers_in_doubt(recorder: Recorder, images: np.ndarray, job: Job) -> Iterator[dict[str, Any]]:
    """As `_answers`, of what the job asks for alone: some layers on all images, and a gradient on those of noise."""
    import tensorflow as tf

    layers = job.get("doubtful") or {}
    for part in _by_two(images) if layers else ():
        calls, _ = recorder.run(tf.constant(part))
        arrays: dict[str, Any] = {"images": part}
        for call in calls:
            if call["id"] in layers:
                arrays |= _outputs(call, layers[call["id"]])
        del calls
        yield arrays
        del arrays
    recorder.calls.clear()
    if (target := job.get("target")) is not None:
        yield _gradient(recorder, images[: job["noise"]], target)


def _by_two(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[start : start + AT_A_TIME] for start in range(0, len(images), AT_A_TIME))


def _outputs(call: dict[str, Any], index: int) -> dict[str, Any]:
    found = {f"{index}": call["after"]}
    return found if call["before"] is None else found | {f"{BEFORE}{index}": call["before"]}


def _gradient(recorder: Recorder, images: np.ndarray, target: tuple[str, int, int, int]) -> dict[str, Any]:
    """The answer with a gradient; `target`: as in `Job`."""
    import tensorflow as tf

    layer, _, channel, before = target

    # In a function, so that what the image's gradient does not need is cut away: the gradients of the weights, where
    # TensorFlow's kernel for 1x1 convolutions with strides corrupts memory, and all layers behind.
    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), images.dtype)], autograph=False)  # type: ignore[untyped-decorator]
    def gradient(x: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            calls, _ = recorder.run(x)
            output = next(call["before" if before else "after"] for call in calls if call["id"] == layer)
            score = tf.reduce_sum(tf.reduce_mean(output, (1, 2))[:, channel])
        return tape.gradient(score, x)

    _say("differentiating it in TensorFlow")
    gradients = [gradient(tf.constant(image[None])).numpy() for image in images]  # alone: every layer of it is held
    return {"images": images, "gradient": np.concatenate(gradients), "gradient_target": np.array(target[1:])}


def _fold_as_float32() -> None:
    """From now on batch normalisation multiplies and adds what TensorFlow folds its four constants into in float32.

    These two are what the graph holds. Worked out in float64 they differ by a rounding of float32, 6e-8, which is no
    error, and more than float64 is asked to tell.
    """
    import tensorflow as tf

    plain = tf.nn.batch_normalization

    def folded(x: Any, mean: Any, variance: Any, offset: Any, scale: Any, variance_epsilon: Any, **rest: Any) -> Any:
        if mean.shape.num_elements() != max(mean.shape):  # of each image: nothing is folded
            return plain(x, mean, variance, offset, scale, variance_epsilon, **rest)
        mean, variance = tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)
        factor = tf.math.rsqrt(variance + tf.cast(variance_epsilon, tf.float32))
        if scale is not None:
            factor *= tf.cast(scale, tf.float32)
        shift = -mean * factor if offset is None else tf.cast(offset, tf.float32) - mean * factor
        return x * tf.cast(factor, x.dtype) + tf.cast(shift, x.dtype)

    tf.nn.batch_normalization = folded


def _hand_over(folder: Path, name: str, arrays: dict[str, Any] | None = None) -> None:
    """Tell that a file is ready, written here first if it is one of arrays, and wait until it was read."""
    if arrays is not None:
        np.savez(folder / name, allow_pickle=False, **arrays)
    _say(ANSWER + name)
    sys.stdin.readline()


def _say(stage: str) -> None:
    print(stage, flush=True)


def main(folder: Path) -> None:
    """Export the network that `job.json` names; see the module's head for what is written."""
    for name in _LEFT_OUT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type] # so that importing it is an ImportError
    job: Job = json.loads((folder / "job.json").read_text())
    _say("starting TensorFlow")
    import keras
    import onnx
    import tensorflow as tf
    import tf2onnx

    _say("reading the Keras network")
    height, width = job["size"] or (None, None)
    architecture = job.get("architecture")
    model = load_network(
        Path(job["model"]), (height, width) if height and width else None, Path(architecture) if architecture else None
    )
    rows, columns, channels = (int(n) for n in model.inputs[0].shape[1:])
    shape = rows, columns, channels
    exact = job["dtype"] == "float64"
    if exact:
        target = job.get("target")
        wanted = dict.fromkeys([*(job.get("doubtful") or {}), *([target[0]] if target else [])])
        model = in_dtype(part_with(model, list(wanted)), "float64")
        gc.collect()  # the weights in float32
    recorder = Recorder(model)  # which changes the network, so that it can no longer be copied
    del model
    if not exact:
        _say("writing it as ONNX")
        layers, last, rewrites = to_onnx(recorder, shape, folder)
        domain = find_domain(shape, first_layers=recorder.first_layers(), **job["domain"])
        versions = {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tf2onnx": tf2onnx.__version__,
            "onnx": onnx.__version__,
        }
        description = {
            "input_shape": shape,
            "layers": layers,
            "output": last,
            "versions": versions,
            "domain": domain.to_dict(),
            "rewrites": rewrites,
        }
        (folder / "layers.json").write_text(json.dumps(description))
        _hand_over(folder, "layers.json")
    else:
        domain = Domain.from_dict(job["domain"])
        _fold_as_float32()
    _say("running it in TensorFlow for reference")
    images = np.asarray(_probes(job, shape, domain), job["dtype"])
    answers = _answers_in_doubt(recorder, images, job) if exact else _answers(recorder, images)
    for number, arrays in enumerate(answers):
        _hand_over(folder, f"answer_{number}.npz", arrays)
        arrays.clear()  # or else the loop would hold them until the next ones are there


if __name__ == "__main__":
    work = Path(sys.argv[1])
    try:
        main(work)
    except InputError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:  # of TensorFlow or tf2onnx: its reason, which need not be stderr's last line
        kind, message = "Exception", f"{type(error).__name__}: {one_line(error)}"
    else:
        sys.exit()
    (work / "error.json").write_text(json.dumps({"kind": kind, "message": message}))
    sys.exit(2)
