"""How does a network leave as plain PyTorch: a source file, weights, and a check that it computes the same?"""

from __future__ import annotations

import ast
import copy
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, VerificationError
from oip_torch.base.files import as_path, replacing_in
from oip_torch.base.messages import one_line
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import to_tensor
from oip_torch.network.load import load
from oip_torch.network.model import FeatureModel
from oip_torch.network.probes import noise
from oip_torch.plain.code import Source, write_source

__all__ = ["TOLERANCE", "export_torch"]

TOLERANCE = 1e-5
"""Of the largest value of a layer: what a conversion is verified to. Products with their bias in one step round
otherwise than in two; a wrong axis or a lost bias shows as 1e-2 or more."""
_PROBES = 4
_CODE, _WEIGHTS = "model.py", "weights.safetensors"


def export_torch(model: FeatureModel | str | os.PathLike[str], folder: str | os.PathLike[str]) -> dict[str, float]:
    """Write a network as plain PyTorch: `model.py`, one `nn.Module` to read and change, and `weights.safetensors`.

        oip.export_torch("mnist_cnn.onnx", "plain")

    The source imports torch alone. Its layers bear the network's own names, made identifiers, and comments tell the
    shapes. It is read back and run on noise images, four at once and one, and each layer's output compared.

    Args:
        model: from `load`, `convert`, `import_onnx` or `wrap`, or the path of an ONNX file that one of them made.
        folder: is made where it is missing; files of these two names in it are replaced.

    Returns:
        Layer → the largest |difference| of its output over its largest |value|, at most 1e-5.

    Raises:
        InputError: no such file, or the folder cannot be written.
        ConversionError: an operation that cannot be written; it is named. Nothing is written.
        VerificationError: what was written computes something else. Nothing is left.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load(model, device="cpu")
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected a FeatureModel, or the path of an ONNX file")
    network = copy.deepcopy(model).float().cpu()
    probes = to_tensor(network.domain.to_input(noise(_PROBES, network.network.input_shape)))
    source = write_source(network.graph_module, network.taps, network.network, probes[:2])
    folder = as_path(folder, "a folder")
    with replacing_in(folder, [_CODE, _WEIGHTS]) as temporary:
        (temporary / _CODE).write_text(source.code, encoding="utf-8")
        (temporary / _WEIGHTS).write_bytes(save(source.weights))  # save_file has errors of its own for a full disk
        return _checked(network, source, temporary, probes)


def _checked(network: FeatureModel, source: Source, folder: Path, probes: Tensor) -> dict[str, float]:
    """How far the written module's layers are from the network's."""
    errors = dict.fromkeys(source.statements, 0.0)
    with torch.no_grad(), matmul_precision():
        for images in (probes, probes[:1]):
            expected = network.every_layer(images)
            seen: list[Tensor] = []
            try:
                module = _read_back(folder / _CODE, source.name, seen)
                module.load_state_dict(load_file(folder / _WEIGHTS))
                output = module.eval()(images)
            except Exception as error:  # of what was written: anything
                raise VerificationError(
                    f"the written module does not run: {one_line(error)}; nothing was written"
                ) from error
            for layer, statement in source.statements.items():
                got = images if statement < 0 else seen[statement]
                errors[layer] = max(errors[layer], _error(got, expected[layer]))
            result = network.network.output
            errors[result] = max(errors[result], _error(output, expected[result]))
    if failed := [layer for layer, error in errors.items() if not error <= TOLERANCE]:
        raise VerificationError(
            f"the written module does not compute what the network computes: layer {failed[0]!r} differs by "
            f"{errors[failed[0]]:.1e} of its maximum (at most {TOLERANCE:.0e} is allowed); nothing was written",
            failed=failed,
        )
    return errors


def _read_back(path: Path, name: str, seen: list[Tensor]) -> nn.Module:
    """The module of the file, whose `forward` adds what each of its statements gives to `seen`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (made,) = (part for part in tree.body if isinstance(part, ast.ClassDef))
    forward = next(part for part in made.body if isinstance(part, ast.FunctionDef) and part.name == "forward")
    body: list[ast.stmt] = []
    for statement in forward.body:
        body.append(statement)
        if isinstance(statement, ast.Assign):
            body.extend(ast.parse(f"_seen.append({ast.unparse(statement.targets[0])})").body)
    forward.body = body
    names: dict[str, Any] = {"_seen": seen, "__name__": "model"}
    # Source that was written just now, of a closed list of operations: names from files are identifiers in it.
    exec(compile(ast.fix_missing_locations(tree), path.name, "exec"), names)  # noqa: S102
    module: nn.Module = names[name]()
    return module


def _error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    apart, scale = float((got - expected).abs().max()), float(expected.abs().max())
    error = apart / scale if scale > 0 else (0.0 if apart == 0 else math.inf)
    return error if math.isfinite(error) else math.inf
