"""How is one operation of a graph written as a line of PyTorch?

The list is closed: what is not on it is refused by name. Nothing that comes from a file becomes code but numbers, which
are written by `repr`, and names of attributes, which `plain.code` makes identifiers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn

from oip_torch.plain.layers import LAYERS, linear, pad
from oip_torch.plain.words import Operation, Writer, number, numbers, setting, uncovered

__all__ = ["write"]


def write(operation: Operation) -> str:
    """The expression that gives the operation's output.

    Raises:
        ConversionError: an operation, or a form of one, that is not on the list.
    """
    part = operation.part
    if isinstance(part, str):
        return _function(operation)
    if isinstance(part, nn.Sequential):
        return _padded(operation, part)
    of_torch = type(part).__module__.startswith("torch.nn.modules.")
    ours = type(part).__module__.startswith(("onnx2torch.", "oip_torch."))
    writer = (LAYERS if of_torch else _ONNX if ours else {}).get(type(part).__name__)
    if writer is None:
        raise uncovered(operation.kind)
    return writer(operation, part)


def _padded(op: Operation, part: nn.Sequential) -> str:
    """An asymmetric padding with what it is for."""
    if len(part) != 2 or type(part[0]).__name__ != "OnnxPadStatic":
        raise uncovered("Sequential")
    return write(dataclasses.replace(op, part=part[1], args=[pad(op, part[0])]))


def _instance_norm(op: Operation, part: Any) -> str:
    return f"F.instance_norm({op.args[0]}, weight={op.args[1]}, bias={op.args[2]}, eps={number(part.epsilon)})"


def _reshape(op: Operation, part: Any) -> str:
    target, shape = list(part.target), list(op.output.shape)
    if 0 in target and target[0] == 0 and -1 in target[1:]:
        target[target.index(-1)] = shape[target.index(-1)]
        target[0] = -1
    target = [shape[axis] if count == 0 and axis else count for axis, count in enumerate(target)]
    if target[0] == 0:
        target[0] = -1
    if len(target) == 2 and target[0] == -1 and op.values[0].shape[0] == shape[0]:
        return f"{op.args[0]}.flatten(1)"
    return f"{op.args[0]}.reshape({', '.join(map(number, target))})"


def _arithmetic(op: Operation, part: Any) -> str:
    signs = {"add": "+", "sub": "-", "mul": "*", "_onnx_div": "/"}
    sign = signs.get(part.math_op_function.__name__)
    if sign is None or part.axis is not None or not op.output.is_floating_point():
        raise uncovered(f"{op.kind} of whole numbers, or along an axis")
    left, right = (f"({arg})" if arg.startswith("-") else arg for arg in op.args)
    return f"{left} {sign} {right}"


def _matmul(op: Operation, part: Any) -> str:
    weight = op.values[1]
    if op.constants[1] and not op.constants[0] and weight.ndim == 2:
        return linear(op, weight.t(), None)
    return f"{op.args[0]} @ {op.args[1]}"


def _gemm(op: Operation, part: Any) -> str:
    if part.trans_a or part.alpha != 1 or part.beta != 1:
        raise uncovered("Gemm with factors, or a transposed first matrix")
    product = f"{op.args[0]} @ {op.args[1]}{'.t()' if part.trans_b else ''}"
    return product if len(op.args) < 3 else f"{product} + {op.args[2]}"


def _clip(op: Operation, part: Any) -> str:
    ends = {"min": part.min_val, "max": part.max_val}
    given = ", ".join(f"{name}={number(float(end))}" for name, end in ends.items() if end is not None)
    return f"{op.args[0]}.clamp({given})"


_REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin"}


def _reduced(op: Operation, part: Any) -> str:
    kind = getattr(part, "operation_type", "ReduceSum")
    axes = part.axes if hasattr(part, "axes") else part._axes
    keep = bool(part.keepdims if hasattr(part, "keepdims") else part._keepdims)
    if not axes or kind not in (*_REDUCTIONS, "ReduceL2", "ReduceSumSquare"):
        raise uncovered(kind if axes else f"{kind} over all axes")
    rest = f"{numbers(list(axes))}{', keepdim=True' if keep else ''})"
    if kind == "ReduceL2":
        return f"torch.linalg.vector_norm({op.args[0]}, dim={rest}"
    if kind == "ReduceSumSquare":
        return f"{op.args[0]}.square().sum({rest}"
    return f"{op.args[0]}.{_REDUCTIONS[kind]}({rest}"


def _global_mean(op: Operation, part: Any) -> str:
    axes = op.values[0].ndim - 2
    if axes == 2:
        return f"F.adaptive_avg_pool2d({op.args[0]}, 1)"
    return f"{op.args[0]}.mean({numbers(list(range(2, 2 + axes)))}, keepdim=True)"


def _axes(method: str, name: str) -> Writer:
    def writer(op: Operation, part: Any) -> str:
        axes = getattr(part, name)
        if not axes:
            raise uncovered(f"{op.kind} of all axes")
        return op.args[0] + "".join(f".{method}({int(axis)})" for axis in axes)

    return writer


def _elementwise_function(op: Operation, part: Any) -> str:
    return f"torch.{_named(part.function.__name__, _PLAIN)}({op.args[0]})"


def _hard_sigmoid(op: Operation, part: Any) -> str:
    if math.isclose(part.alpha, 1 / 6, rel_tol=1e-6) and part.beta == 0.5:
        return f"F.hardsigmoid({op.args[0]})"
    return f"({op.args[0]} * {number(part.alpha)} + {number(part.beta)}).clamp(0, 1)"


def _larger(op: Operation, part: Any) -> str:
    function, end = {"amax": ("maximum", "min"), "amin": ("minimum", "max")}[part._operator.__name__]
    if len(op.args) != 2:
        raise uncovered(f"{op.kind} of {len(op.args)} tensors")
    numbers = [constant and value.numel() == 1 for constant, value in zip(op.constants, op.values, strict=True)]
    if any(numbers):
        fixed = numbers.index(True)
        return f"{op.args[1 - fixed]}.clamp({end}={op.args[fixed]})"
    return f"torch.{function}({op.args[0]}, {op.args[1]})"


def _power(op: Operation, part: Any) -> str:
    if part.axis is not None:
        raise uncovered("Pow along an axis")
    return f"torch.pow({op.args[0]}, {op.args[1]})"


def _prelu(op: Operation, part: Any) -> str:
    slope = op.values[1]
    if not op.constants[1]:
        raise uncovered("PRelu with a slope that is computed")
    shape = (1,) * (op.output.ndim - slope.ndim) + tuple(slope.shape)
    if slope.numel() == 1 or shape == (1, op.output.shape[1], *(1,) * (op.output.ndim - 2)):
        own = op.own(f"nn.PReLU({slope.numel()})", {"weight": slope.reshape(-1)})
        return f"{own}({op.args[0]})"
    return f"torch.where({op.args[0]} >= 0, {op.args[0]}, {op.args[0]} * {op.args[1]})"


def _gather(op: Operation, part: Any) -> str:
    if not op.constants[1] or op.constants[0]:
        raise uncovered("Gather by indices that are computed")
    axis, indices = part._axis % op.values[0].ndim, op.values[1]
    count = op.values[0].shape[axis]
    chosen = [int(index) % count for index in indices.reshape(-1).tolist()]
    if indices.ndim == 0:
        return f"{op.args[0]}.select({axis}, {chosen[0]})"
    if indices.ndim == 1 and chosen == list(range(count))[::-1]:
        return f"{op.args[0]}.flip({axis})"
    if indices.ndim == 1 and chosen == list(range(chosen[0], chosen[0] + len(chosen))):
        return f"{op.args[0]}.narrow({axis}, {chosen[0]}, {len(chosen)})"
    if indices.ndim != 1:
        raise uncovered("Gather by a table of indices")
    return f"{op.args[0]}.index_select({axis}, {op.args[1]})"


def _resize(op: Operation, part: Any) -> str:
    size = f"size={numbers(part.size)}" if part.size else f"scale_factor={numbers(part.factors)}"
    aligned = "" if part.align_corners is None else f", align_corners={bool(part.align_corners)}"
    return f"F.interpolate({op.args[0]}, {size}, mode={part.mode!r}{aligned})"


def _tile(op: Operation, part: Any) -> str:
    if not op.constants[1]:
        raise uncovered("Tile by numbers that are computed")
    return f"{op.args[0]}.repeat({', '.join(map(number, op.values[1].tolist()))})"


def _cast(op: Operation, part: Any) -> str:
    kind = str(part.torch_dtype)
    if kind not in ("torch.float32", "torch.float64", "torch.int64", "torch.bool"):
        raise uncovered(f"Cast to {kind}")
    return f"{op.args[0]}.to({kind})"


def _function(op: Operation) -> str:
    """Of a graph that torch.fx traced."""
    name = str(op.part)
    signs = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "div": "/", "matmul": "@"}
    if name in signs and len(op.args) == 2 and not op.keywords:
        left, right = (f"({arg})" if arg.startswith("-") else arg for arg in op.args)
        return f"{left} {signs[name]} {right}"
    if name == "cat":
        return f"torch.cat({', '.join([*op.args, *(f'{key}={value}' for key, value in op.keywords.items())])})"
    named = _named(name, _METHODS)
    rest = [*op.args[1:], *(f"{key}={value}" for key, value in op.keywords.items())]
    if named in _OF_F:
        return f"F.{named}({', '.join([op.args[0], *rest])})"
    return f"{op.args[0]}.{named}({', '.join(rest)})"


def _named(name: str, known: frozenset[str]) -> str:
    if name not in known:
        raise uncovered(name)
    return name


_PLAIN = frozenset("abs acos asin atan cos exp log sign sin tan tanh".split())
_OF_F = frozenset(
    "adaptive_avg_pool2d avg_pool2d max_pool2d relu6 gelu silu hardswish hardsigmoid leaky_relu elu "
    "softplus pad".split()
)
_METHODS = _OF_F | frozenset(
    "flatten mean sum relu sigmoid tanh softmax log_softmax reshape view permute transpose unsqueeze squeeze "
    "contiguous size clamp exp sqrt abs".split()
)

_ONNX: dict[str, Writer] = {
    "OnnxBinaryMathOperation": _arithmetic,
    "OnnxCast": _cast,
    "OnnxClip": _clip,
    "OnnxConcat": setting("torch.cat(({all}), dim={part.axis})"),
    "OnnxDepthToSpace": setting("F.pixel_shuffle({x}, {part._upscale_factor})"),
    "OnnxErf": setting("torch.erf({x})"),
    "OnnxFunction": _elementwise_function,
    "OnnxGather": _gather,
    "OnnxGemm": _gemm,
    "OnnxGlobalAveragePool": _global_mean,
    "OnnxGlobalAveragePoolWithKnownInputShape": _global_mean,
    "OnnxHardSigmoid": _hard_sigmoid,
    "OnnxInstanceNorm": _instance_norm,
    "OnnxMatMul": _matmul,
    "OnnxMinMax": _larger,
    "OnnxNeg": setting("-{x}"),
    "OnnxPReLU": _prelu,
    "OnnxPadStatic": pad,
    "OnnxPow": _power,
    "OnnxReciprocal": setting("1 / {x}"),
    "OnnxReduceStaticAxes": _reduced,
    "OnnxReduceSumStaticAxes": _reduced,
    "OnnxSqrt": setting("torch.sqrt({x})"),
    "OnnxSqueezeStaticAxes": _axes("squeeze", "axes"),
    "OnnxSum": setting("{sum}"),
    "OnnxTile": _tile,
    "OnnxTranspose": lambda op, part: f"{op.args[0]}.permute({', '.join(map(number, part.perm))})",
    "OnnxUnsqueezeStaticAxes": _axes("unsqueeze", "_axes"),
    "Reshape": _reshape,
    "Resize": _resize,
}
