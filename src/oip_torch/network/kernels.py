"""How are some convolutions computed in less time than torch takes, forward and back to the images?

Three kinds: of which each image wants one channel; of few input channels; and all those that oneDNN computes with
weights packed once, with what is added to them and a ReLU in the same operation. Their weights get no gradient.
`network.passes` puts them where they fit.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FewChannels", "OwnChannel", "Packed"]

_Size = tuple[int, int]
_Window = tuple[list[int], list[int], list[int]]  # padding, stride, dilation
_COLORS = 4  # input channels, at most, of a convolution that goes back in larger steps by a shuffle of pixels


class OwnChannel(nn.Module):
    """A convolution of which each image wants one channel."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: Tensor, channels: Tensor) -> Tensor:
        """(batch, channels, height, width), (batch,) → (batch, 1, height, width)."""
        module = self.convolution
        if isinstance(module.padding, str) or any(module.padding):
            images = nn.functional.pad(images, module._reversed_padding_repeated_twice)
        kernels = module.weight.index_select(0, channels).flatten(2)
        window = module.kernel_size, module.stride, module.dilation
        windows: Tensor = _WindowSums.apply(images, kernels, *window)
        if module.bias is not None:
            windows = windows + module.bias[channels][:, None, None]
        return windows[:, None]


class _WindowSums(torch.autograd.Function):
    """Each image's product with a kernel of its own: (batch, channels, height, width) → (batch, rows, columns).

    kernels: (batch, channels, places of the window). They get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, kernels: Tensor, kernel_size: _Size, stride: _Size, dilation: _Size
    ) -> Tensor:
        ctx.save_for_backward(kernels)
        ctx.size, ctx.window = images.shape[2:], (kernel_size, stride, dilation)
        ctx.channels_last = not images.is_contiguous()
        # What each pixel would add if the window lay over it with its first, its second … place,
        parts = torch.bmm(kernels.transpose(1, 2), images.flatten(2))
        # and for each window the sum of its places' pixels.
        return _windows(parts.contiguous(), ctx.size, *ctx.window).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's has *args
        (kernels,) = ctx.saved_tensors
        batch, channels, places = kernels.shape
        height, width = ctx.size
        parts = gradient.new_zeros(batch, places, height * width)
        _windows(parts, ctx.size, *ctx.window).copy_(gradient[:, None, None])
        if ctx.channels_last:  # the layout that came is the one that goes: what follows reads both side by side
            images = torch.bmm(parts.transpose(1, 2), kernels.transpose(1, 2)).transpose(1, 2)
        else:
            images = torch.bmm(kernels, parts)
        return images.view(batch, channels, height, width), None, None, None, None


def _windows(parts: Tensor, size: _Size, kernel_size: _Size, stride: _Size, dilation: _Size) -> Tensor:
    """(batch, places, pixels) → (batch, rows, columns, down, across), the pixel under each place of each window.

    A view: the pixels of a window lie along a diagonal in memory.
    """
    (height, width), (rows, columns), (down, right), (below, beside) = size, kernel_size, stride, dilation
    of_image, of_place, of_pixel = parts.stride()
    down_by = (height - (rows - 1) * below - 1) // down + 1
    across = (width - (columns - 1) * beside - 1) // right + 1
    return parts.as_strided(
        (len(parts), rows, columns, down_by, across),
        (
            of_image,
            columns * of_place + below * width * of_pixel,
            of_place + beside * of_pixel,
            down * width * of_pixel,
            right * of_pixel,
        ),
    )


class FewChannels(nn.Module):
    """A convolution of few input channels."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: Tensor) -> Tensor:
        """As the convolution does."""
        module = self.convolution
        output: Tensor = _BackByProduct.apply(
            images, module.weight, module.bias, module.stride, module.padding, module.dilation
        )
        return output


class _BackByProduct(torch.autograd.Function):
    """A convolution whose gradient with respect to its input is a matrix product, and a sum of shifted images.

    The kernels for this are made for many input channels. The weights get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: _Size, padding: _Size, dilation: _Size
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.window = images.shape[2:], (stride, padding, dilation)
        return nn.functional.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's has *args
        (weight,) = ctx.saved_tensors
        (down, right), (above, left), (below, beside) = ctx.window
        maps, channels, rows, columns = weight.shape
        batch, _, high, wide = gradient.shape
        # What each output pixel gives to each place of its window; then every place's share, shifted to where it lies.
        pixels = gradient.permute(1, 0, 2, 3).reshape(maps, -1)
        shares = (weight.reshape(maps, -1).t() @ pixels).view(channels, rows, columns, batch, high, wide)
        height, width = ctx.size
        images = gradient.new_zeros(channels, batch, height + 2 * above, width + 2 * left)
        for row in range(rows):
            for column in range(columns):
                y, x = row * below, column * beside
                under = images[:, :, y : y + (high - 1) * down + 1 : down, x : x + (wide - 1) * right + 1 : right]
                under += shares[:, row, column]
        inside = images[:, :, above : above + height, left : left + width]
        return inside.transpose(0, 1), None, None, None, None, None


class Packed(nn.Module):
    """A convolution by oneDNN, its weights packed once for both directions; with an addition and a ReLU, if there are.

    Args:
        convolution: one that `fits`; its weights are copied.
        most: what the ReLU lets through at most, infinity or a number; None: there is no ReLU. oneDNN has no addition
            with a number.
    """

    def __init__(self, convolution: nn.Conv2d, most: float | None = None) -> None:
        super().__init__()
        self.bias, self.groups, self.most = convolution.bias, convolution.groups, most
        weight = convolution.weight.detach()
        padding, stride, dilation = self.window = _window(convolution)
        self.packed = _pack(weight, self.window, self.groups)
        self.back: Tensor | None = None
        self.stride = 1
        if set(stride) == {1}:
            rest = [
                apart * (side - 1) - pad for apart, side, pad in zip(dilation, weight.shape[2:], padding, strict=True)
            ]
        elif _goes_by_shuffle(convolution):
            self.stride, dilation = stride[0], [1, 1]
            weight = _shuffled(weight, self.stride)
            rest = [side - 1 for side in weight.shape[2:]]
        else:
            self.weight = weight.to(memory_format=torch.channels_last)
            return
        self.window_back = rest, [1, 1], dilation
        self.back = _pack(_turned(weight, self.groups), self.window_back, self.groups)

    @property
    def bytes(self) -> int:
        """Of the weights, in both forms."""
        return 2 * self.packed.numel() * self.packed.element_size()

    @staticmethod
    def fits(convolution: nn.Conv2d) -> bool:
        """Whether oneDNN computes it, on a processor for which that was measured."""
        plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        if not (plain and convolution.weight.dtype == torch.float32 and _has_onednn()):
            return False
        padding, _, dilation = _window(convolution)
        outermost = [apart * (side - 1) for apart, side in zip(dilation, convolution.kernel_size, strict=True)]
        return padding[0] <= outermost[0] and padding[1] <= outermost[1]  # the way back pads by the rest

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """As the convolution, the sum with `added` and the ReLU do."""
        added = None if added is None else added.to(images.dtype)  # truth values may be added, but not by oneDNN
        if torch.is_grad_enabled():
            output: Tensor = _ByOneDNN.apply(images, added, self)
            return output
        # Final scores: oneDNN's ReLU makes 0 of NaN, and torch's lets it through to where it is noticed.
        output = _forward(images, added, self, None)
        return output if self.most is None else output.clamp_(0, self.most)


def _forward(images: Tensor, added: Tensor | None, module: Packed, most: float | None) -> Tensor:
    given = (module.packed, module.bias, *module.window, module.groups)
    name, limits = (None, []) if most is None else ("relu", []) if most == math.inf else ("hardtanh", [0.0, most])
    if added is None:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(images, *given, name or "none", limits, "")
    else:
        output = torch.ops.mkldnn._convolution_pointwise.binary(images, added, *given, "add", None, name, limits, "")
    return output


class _ByOneDNN(torch.autograd.Function):
    """The weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, added: Tensor | None, module: Packed) -> Tensor:
        output = _forward(images, added, module, module.most)
        ctx.module, ctx.adds, ctx.size = module, added is not None, images.shape
        ctx.save_for_backward(*(() if module.most is None else (output,)))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's has *args
        module: Packed = ctx.module
        if module.most == math.inf:
            gradient = torch.ops.aten.threshold_backward(gradient, *ctx.saved_tensors, 0)
        elif module.most is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0, module.most)
        return _back(gradient, module, ctx.size), gradient if ctx.adds else None, None


def _back(gradient: Tensor, module: Packed, size: torch.Size) -> Tensor:
    """From a convolution's output to images of this size."""
    padding, stride, dilation = module.window
    if module.back is None:
        like = torch.empty(size, memory_format=torch.channels_last)  # only its form is looked at
        images: Tensor = torch.ops.aten.convolution_backward(
            *(gradient, like, module.weight, None, stride, padding, dilation),
            *(False, [0, 0], module.groups, [True, False, False]),
        )[0]
        return images
    images = torch.ops.mkldnn._convolution_pointwise(
        gradient, module.back, None, *module.window_back, module.groups, "none", [], ""
    )
    if module.stride == 1:
        return images
    (above, left), (_, _, height, width) = padding, size
    images = nn.functional.pixel_shuffle(images, module.stride)
    _, _, high, wide = images.shape
    return nn.functional.pad(images, (-left, left + width - wide, -above, above + height - high))


def _has_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # torch has these operations for its compiler, and may take them back: then its own convolutions do.
    return x86 and available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _goes_by_shuffle(convolution: nn.Conv2d) -> bool:
    (down, right), few = convolution.stride, convolution.in_channels <= _COLORS
    return (
        few
        and convolution.groups == 1
        and down == right <= min(convolution.kernel_size)
        and convolution.dilation == (1, 1)
    )


def _window(convolution: nn.Conv2d) -> _Window:
    return [*convolution.padding], [*convolution.stride], [*convolution.dilation]  # type: ignore[list-item] # no string


def _pack(weight: Tensor, window: _Window, groups: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *window, groups)
    return packed


def _turned(weight: Tensor, groups: int) -> Tensor:
    """The weights of the convolution that goes back: inputs and outputs exchanged, windows turned round."""
    outputs, inputs, *window = weight.shape
    each = weight.reshape(groups, outputs // groups, inputs, *window).transpose(1, 2)
    return each.reshape(groups * inputs, outputs // groups, *window).flip(2, 3)


def _shuffled(weight: Tensor, stride: int) -> Tensor:
    """The weights of the same convolution with steps of one, of images whose squares of pixels became channels.

    As `torch.nn.functional.pixel_unshuffle` makes them, after the padding.
    """
    outputs, inputs, rows, columns = weight.shape
    weight = nn.functional.pad(weight, (0, -columns % stride, 0, -rows % stride))
    parts = weight.view(outputs, inputs, weight.shape[2] // stride, stride, weight.shape[3] // stride, stride)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(outputs, inputs * stride**2, *parts.shape[2::2])
