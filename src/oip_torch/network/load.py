"""How is a converted network loaded, on which device, and is it still what Keras computed?"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

import torch

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.messages import one_line
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.network.domain import Domain, check_domain
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer, graph_sha256, read
from oip_torch.network.probes import fingerprint, noise

__all__ = ["load", "resolve_device", "with_exact_fingerprints"]

SELF_CHECK_TOLERANCE = 1e-4
"""Of the layer's largest figure. Verification allows 1e-5 of the maximum, and different CPUs and torch versions sum in
another order; a single bias that is off by 1e-2 shows as 1e-3 or more."""


def load(
    path: str | os.PathLike[str],
    *,
    device: str | int | torch.device | None = "auto",
    domain: Domain | None = None,
    check: bool = True,
) -> FeatureModel:
    """Load an ONNX file that `convert` or `import_onnx` made. Needs no TensorFlow.

    Args:
        path: the file.
        device: "auto" (CUDA when present; None says the same), "cpu", "cuda", "cuda:1", the number of a CUDA device, or
            a `torch.device`.
        domain: how pixels become inputs, and what the data look like there, where that is not what the file says.
        check: compare the graph with its digest, and each layer's fingerprint on one probe with Keras' own.

    Raises:
        InputError: missing, damaged, unsafe or foreign file; fingerprints that differ; no such device.
    """
    chosen = resolve_device(device)
    proto, network = read(path, check_digest=check)
    if not check:  # results carry the digest of what is there, and not what the file says of itself
        network = dataclasses.replace(network, graph_sha256=graph_sha256(proto))
    try:
        model = FeatureModel.of_onnx(proto, network)
    except OipError:
        raise
    except Exception as error:  # of onnx2torch or torch, on a crafted graph: anything
        raise _not_running(path, error) from error
    if check:
        _self_check(model, path)
    if domain is not None:
        if not isinstance(domain, Domain):
            raise InputError(f"domain is {shown(domain)}: expected oip_torch.Domain(…), or None for the file's own")
        check_domain(domain, network.input_shape[2])
        model.network = dataclasses.replace(model.network, domain=domain)
    return model.to(chosen)


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """ "auto" and None to CUDA when present, else the CPU; anything else checked."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = shown(str(device) if isinstance(device, torch.device) else device)
    wanted = f"device {name}: expected auto, cpu or cuda"
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise InputError(wanted)
    try:
        # A bare number is one of a CUDA device, also where torch would take it for one of another kind.
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise InputError(wanted) from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(wanted)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} was asked for, but torch finds no CUDA device here; use auto or cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return chosen


def _self_check(model: FeatureModel, path: str | os.PathLike[str]) -> None:
    exact = _decided_in_float64(model.layers)
    try:
        figures = _figures(model, lambda name: name not in exact)
        if exact:
            figures |= _figures(copy.deepcopy(model).double(), exact.__contains__)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # shapes that do not fit, more memory than there is, or whatever a module raises
        raise _not_running(path, error) from error
    reference = "ONNX Runtime" if model.network.verification.get("reference") == "onnxruntime" else "Keras"
    for layer in model.layers:
        got, told = figures[layer.name], layer.fingerprint
        # A layer that is 0 must stay so; the floor only keeps rounding of tiny numbers out.
        allowed = SELF_CHECK_TOLERANCE * max(told[1], abs(told[2]), 1e-6) if len(told) == len(got) else -1.0
        worst = max((abs(a - b) for a, b in zip(got, told, strict=False)), default=0.0)
        if not worst <= allowed:  # NaN fails too
            raise InputError(
                f"{path}: layer {layer.name!r} gives {_short(got)} where {reference} gave {_short(told)}: "
                "the file is damaged, or a library here computes wrongly; convert again, and compare the installed "
                "versions"
            )


def with_exact_fingerprints(model: FeatureModel, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, with figures in float64 where that decided: on another machine, too, float32 tells nothing of those.

    They are the verified module's own, since another program may round the image otherwise.
    """
    exact = _decided_in_float64(layers)
    figures = _figures(copy.deepcopy(model).double(), exact.__contains__) if exact else {}
    return tuple(dataclasses.replace(layer, fingerprint=figures.get(layer.name, layer.fingerprint)) for layer in layers)


def _decided_in_float64(layers: Iterable[Layer]) -> set[str]:
    return {layer.name for layer in layers if layer.error_float64 is not None}


def _figures(model: FeatureModel, wanted: Callable[[str], bool]) -> dict[str, tuple[float, ...]]:
    """Layer → its fingerprint, for one image of noise."""
    probe = to_tensor(noise(1, model.network.input_shape), dtype=model.dtype)
    if model.network.probes_in_domain:
        probe = model.to_input(probe)
    with torch.no_grad(), matmul_precision():
        outputs = model.every_layer(probe)
    return {layer.name: fingerprint(to_array(outputs[layer.name])) for layer in model.layers if wanted(layer.name)}


def _not_running(path: str | os.PathLike[str], error: Exception) -> InputError:
    reason = one_line(error)[:200]
    return InputError(f"{path}: the network does not run ({reason}): the file is damaged; convert again")


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
