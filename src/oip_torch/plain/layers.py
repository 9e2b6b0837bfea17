"""How are the layers and activations of torch.nn written?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from oip_torch.plain.words import Operation, Writer, number, numbers, setting, sizes, uncovered

__all__ = ["LAYERS", "activations_of", "linear", "pad"]


def _options(part: Any, defaults: Mapping[str, Any]) -> list[str]:
    """Keywords of those settings that differ from torch's default."""
    found = []
    for name, default in defaults.items():
        value = getattr(part, name)
        if isinstance(value, (tuple, list)):
            if set(value) != {default}:
                found.append(f"{name}={sizes(value)}")
        elif value != default:
            if isinstance(value, str):
                found.append(f"{name}={value!r}")
            else:
                found.append(f"{name}={number(value)}")
    return found


def _made(part: nn.Module, *args: str, **defaults: Any) -> str:
    return f"nn.{type(part).__name__}({', '.join([*args, *_options(part, defaults)])})"


def _weights(part: nn.Module) -> dict[str, Tensor]:
    return dict(part.state_dict())


def _convolution(op: Operation, part: Any) -> str:
    if part.padding_mode not in ("zeros", "reflect", "replicate", "circular"):
        raise uncovered(f"{op.kind} with padding_mode {part.padding_mode!r}")
    options: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    if isinstance(part, nn.ConvTranspose2d):
        options["output_padding"] = 0
    args = [str(part.in_channels), str(part.out_channels), sizes(part.kernel_size)]
    text = _made(part, *args, **options)
    if part.bias is None:
        text = f"{text[:-1]}, bias=False)"
    return f"{op.own(text, _weights(part))}({op.args[0]})"


def linear(op: Operation, weight: Tensor, bias: Tensor | None) -> str:
    """A dense layer; weight (outputs, inputs), bias (outputs,)."""
    text = f"nn.Linear({weight.shape[1]}, {weight.shape[0]}{'' if bias is not None else ', bias=False'})"
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return f"{op.own(text, weights)}({op.args[0]})"


def _norm(op: Operation, part: Any) -> str:
    """Batch norms learn their statistics in training mode, as those of torch do."""
    args, options = [str(part.num_features)], {"eps": 1e-5, "momentum": 0.1}
    options |= {"affine": isinstance(part, nn.modules.batchnorm._BatchNorm)}
    options |= {"track_running_stats": isinstance(part, nn.modules.batchnorm._BatchNorm)}
    return f"{op.own(_made(part, *args, **options), _weights(part))}({op.args[0]})"


def _layer_norm(op: Operation, part: Any) -> str:
    text = _made(part, numbers(part.normalized_shape), eps=1e-5, elementwise_affine=True)
    if part.elementwise_affine and part.bias is None:
        text = f"{text[:-1]}, bias=False)"
    return f"{op.own(text, _weights(part))}({op.args[0]})"


def _called(*positional: str, **defaults: Any) -> Writer:
    """A module of torch with these settings, and others where they differ from torch's default."""

    def writer(op: Operation, part: Any) -> str:
        args = [
            sizes(value) if isinstance(value := getattr(part, name), (tuple, list, int)) else number(value)
            for name in positional
        ]
        return f"{op.own(_made(part, *args, **defaults), _weights(part))}({op.args[0]})"

    return writer


def _max_pool(op: Operation, part: Any) -> str:
    if part.return_indices:
        raise uncovered("MaxPool2d that returns indices")
    same = sizes(part.stride) == sizes(part.kernel_size)
    options = {"padding": 0, "dilation": 1, "ceil_mode": False}
    return _pool(op, part, same, options)


def _average_pool(op: Operation, part: Any) -> str:
    same = sizes(part.stride) == sizes(part.kernel_size)
    return _pool(op, part, same, {"padding": 0, "ceil_mode": False, "count_include_pad": True})


def _pool(op: Operation, part: Any, same: bool, options: dict[str, Any]) -> str:
    stride = [] if same else [f"stride={sizes(part.stride)}"]
    return f"{op.own(_made(part, sizes(part.kernel_size), *stride, **options), {})}({op.args[0]})"


def _adaptive(op: Operation, part: Any) -> str:
    size = part.output_size
    if any(n is None for n in (size if isinstance(size, (tuple, list)) else [size])):
        raise uncovered(f"{op.kind} with an open size")
    return f"{op.own(_made(part, sizes(size)), {})}({op.args[0]})"


def pad(op: Operation, part: Any) -> str:
    """Constant or repeated values around maps."""
    widths = list(getattr(part, "padding", None) or part.pads)
    while len(widths) > 2 and not any(widths[-2:]):
        del widths[-2:]
    mode = getattr(part, "mode", "constant")
    value = getattr(part, "constant_value", getattr(part, "value", 0.0))
    options = ("" if mode == "constant" else f", mode={mode!r}") + ("" if value == 0 else f", value={number(value)}")
    return f"F.pad({op.args[0]}, {numbers(widths)}{options})"


def _flatten(op: Operation, part: Any) -> str:
    end = "" if part.end_dim == -1 else f", {int(part.end_dim)}"
    return f"{op.args[0]}.flatten({int(part.start_dim)}{end})"


LAYERS: dict[str, Writer] = {
    "AdaptiveAvgPool2d": _adaptive,
    "AvgPool2d": _average_pool,
    "BatchNorm1d": _norm,
    "BatchNorm2d": _norm,
    "CELU": setting("F.celu({x}, {part.alpha})"),
    "Conv2d": _convolution,
    "ConvTranspose2d": _convolution,
    "Dropout": _called("p"),
    "Dropout2d": _called("p"),
    "ELU": setting("F.elu({x}, {part.alpha})"),
    "Flatten": _flatten,
    "GELU": setting("F.gelu({x}, approximate={part.approximate})"),
    "GroupNorm": _called("num_groups", "num_channels", eps=1e-5, affine=True),
    "Hardsigmoid": setting("F.hardsigmoid({x})"),
    "Hardswish": setting("F.hardswish({x})"),
    "Hardtanh": setting("F.hardtanh({x}, {part.min_val}, {part.max_val})"),
    "InstanceNorm1d": _norm,
    "InstanceNorm2d": _norm,
    "LayerNorm": _layer_norm,
    "LeakyReLU": setting("F.leaky_relu({x}, {part.negative_slope})"),
    "Linear": lambda op, part: linear(op, part.weight, part.bias),
    "LocalResponseNorm": _called("size", alpha=1e-4, beta=0.75, k=1.0),
    "LogSoftmax": setting("F.log_softmax({x}, dim={part.dim})"),
    "MaxPool2d": _max_pool,
    "Mish": setting("F.mish({x})"),
    "PReLU": _called("num_parameters"),
    "PixelShuffle": setting("F.pixel_shuffle({x}, {part.upscale_factor})"),
    "ReLU": setting("F.relu({x})"),
    "ReLU6": setting("F.relu6({x})"),
    "SELU": setting("F.selu({x})"),
    "SiLU": setting("F.silu({x})"),
    "Sigmoid": setting("torch.sigmoid({x})"),
    "Softmax": setting("F.softmax({x}, dim={part.dim})"),
    "Softplus": setting("F.softplus({x}, {part.beta}, {part.threshold})"),
    "Softsign": setting("F.softsign({x})"),
    "Tanh": setting("torch.tanh({x})"),
    "ZeroPad2d": pad,
}


def activations_of(name: str | None) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """What an activation of this name may be in torch, (as it is written, the function): the numbers tell which."""
    functional = nn.functional
    known: dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]] = {
        "gelu": [
            ("F.gelu({x})", functional.gelu),
            ('F.gelu({x}, approximate="tanh")', lambda x: functional.gelu(x, approximate="tanh")),
        ],
        "hard_sigmoid": [("F.hardsigmoid({x})", functional.hardsigmoid)],
        "hard_silu": [("F.hardswish({x})", functional.hardswish)],
        "log_softmax": [("F.log_softmax({x}, dim=-1)", lambda x: functional.log_softmax(x, -1))],
        "mish": [("F.mish({x})", functional.mish)],
        "relu6": [("F.relu6({x})", functional.relu6)],
        "silu": [("F.silu({x})", functional.silu)],
        "softplus": [("F.softplus({x})", functional.softplus)],
    }
    known["swish"], known["hard_swish"] = known["silu"], known["hard_silu"]
    return known.get(name or "", [])
