"""How are some convolutions computed in less time than torch takes, forward and back to the images?

Three kinds: of which each image wants one channel; of few input channels; of single pixels. Their weights get no
gradient. `network.passes` puts them where they fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FewChannels", "OfPixels", "OwnChannel"]

_Size = tuple[int, int]


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


class OfPixels(nn.Module):
    """A convolution of single pixels: a window of one by one, steps of one."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.register_buffer("back", convolution.weight.detach().transpose(0, 1).contiguous())

    def forward(self, images: Tensor) -> Tensor:
        """As the convolution does."""
        output: Tensor = _BothWays.apply(images, self.convolution.weight, self.convolution.bias, self.back)
        return output


class _BothWays(torch.autograd.Function):
    """A convolution of single pixels, by oneDNN; its gradient is one with the weights transposed, `back`.

    The weights get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _by_onednn(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's has *args
        (back,) = ctx.saved_tensors
        return _by_onednn(gradient, back, None), None, None, None


def _by_onednn(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.aten.mkldnn_convolution(images, weight, bias, (0, 0), (1, 1), (1, 1), 1)
    return made
