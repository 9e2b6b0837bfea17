"""What does the network see of an image while it is optimised?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.base.checks import number, plain
from oip_torch.base.errors import InputError

__all__ = ["Seen", "Views", "seen_under"]

Seen = Callable[[int, Tensor], Callable[[Tensor], Tensor]]
"""(step, rows of the batch) → how the network sees these images at that step."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the network sees at each step: the image under one random rotation, scaling and shift, edges repeated.

    A pattern that survives them does not hang on single pixels. Each image has random numbers of its own.

    Attributes:
        rotation: by at most so many degrees, either way.
        scale: by at most this share, larger or smaller.
        shift: by at most so many pixels, in both directions.
        noise: standard deviation of normal noise that is added, in units of the data's.
        fade: the share of the steps at which their size, the noise's as well, has fallen to 0, linearly; None: the
            same size to the end.
    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 1.5
    noise: float = 0.0
    fade: float | None = 0.7

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        for name in ("rotation", "scale", "shift", "noise"):
            value = plain(getattr(self, name))
            if number(name, value, "a number of 0 or more") < 0:
                raise InputError(f"{name} is {value}: expected a number of 0 or more")
            object.__setattr__(self, name, value)
        if self.scale >= 1:
            raise InputError(f"scale is {self.scale}: expected a number below 1")
        object.__setattr__(self, "fade", plain(self.fade))
        if self.fade is not None and not 0 < number("fade", self.fade) <= 1:
            raise InputError(f"fade is {self.fade}: expected a number above 0, at most 1, or None")

    @property
    def moves(self) -> bool:
        """Whether the image is turned, scaled or shifted at all."""
        return self.rotation > 0 or self.scale > 0 or self.shift > 0

    @property
    def summary(self) -> str:
        """In words, for pictures."""
        what = [*(["random views"] if self.moves else []), *([f"noise of {self.noise:g}"] if self.noise else [])]
        until = "to the end" if self.fade is None else f"fading out at {self.fade:.0%} of the steps"
        return f"seen under {' and '.join(what)} {until}" if what else ""

    def size(self, done: float) -> float:
        """At a share `done` of the steps, 0 to 1."""
        return 1.0 if self.fade is None else max(0.0, 1.0 - done / self.fade)

    def see(self, x: Tensor, draws: Tensor, size: float) -> Tensor:
        """Images (n, C, H, W) as they are moved, by uniform numbers (n, 4) of -1 to 1, in so much of the full size."""
        if size == 0 or not self.moves:
            return x
        angle, zoom, down, right = (draws * size).to(x).unbind(1)
        angle, zoom = angle * math.radians(self.rotation), 1 + zoom * self.scale
        height, width = x.shape[2:]
        cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
        rows = [
            torch.stack([cosine, -sine * (height / width), right * (2 * self.shift / width)], 1),
            torch.stack([sine * (width / height), cosine, down * (2 * self.shift / height)], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def seen_under(views: Views, draws: Tensor, streams: Sequence[np.random.Generator]) -> Seen:
    """How a batch is seen, step by step.

    Args:
        views: of all images.
        draws: (batch, steps, 4), -1 to 1, of which `Views.see` takes those of a step.
        streams: of each image the random numbers of its noise, drawn as the steps come; not used without noise.
    """
    steps = draws.shape[1]

    def seen(step: int, rows: Tensor) -> Callable[[Tensor], Tensor]:
        size = views.size(step / max(1, steps - 1))

        def see(x: Tensor) -> Tensor:
            moved = views.see(x, draws[rows, step], size)
            if not views.noise or not size:
                return moved
            drawn = [streams[row].standard_normal(x.shape[1:], dtype=np.float32) for row in rows.tolist()]
            return moved + size * views.noise * torch.from_numpy(np.stack(drawn)).to(x)

        return see

    return seen
