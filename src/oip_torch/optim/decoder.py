"""How do the numbers that an ascent moves become a bounded image, and where do they go back to after a step?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from oip_torch.base.errors import InputError
from oip_torch.base.tensors import rms, standardize
from oip_torch.optim.colors import Decorrelated
from oip_torch.optim.constraint import Constraint, Range, Standardized
from oip_torch.optim.image import Image, Phases, Pixels
from oip_torch.optim.schedule import TINY

__all__ = ["Decoder"]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Image, colours and constraint of an ascent together.

    Where the pixels themselves are optimised, they are bounded after each step. Otherwise bounds on the numbers would
    bound something else than the image: so the image is bounded as a part of what the gradient goes through.
    """

    image: Image = Pixels()
    colors: Decorrelated | None = None
    constraint: Constraint = Standardized()

    @classmethod
    def of(
        cls,
        image: Image,
        colors: Decorrelated | None,
        constraint: Constraint,
        *,
        shape: tuple[int, int, int],
        ends: Sequence[npt.NDArray[np.floating]],
    ) -> Decoder:
        """For images of one network.

        Args:
            image, colors, constraint: of the settings.
            shape: (channels, height, width).
            ends: black and white of the data, one number or one per channel, in units of standardised images.

        Raises:
            InputError: another number of channels or rings than these images have.
        """
        channels, height, width = shape
        image.check(height, width)
        if colors is not None and len(colors.matrix) != channels:
            raise InputError(
                f"the colours are of {len(colors.matrix)} channels: expected {channels}, as the network's images have; "
                + ("colors=None" if channels == 1 else "take Decorrelated.of(images)")
            )
        if isinstance(constraint, Range):
            if constraint.limits == "data":
                low, high = (tuple(end.tolist()) if len(set(end.tolist())) > 1 else float(end[0]) for end in ends)
                constraint = replace(constraint, limits=(low, high))
            assert constraint.limits != "data"
            for limit in constraint.limits:
                if isinstance(limit, tuple) and len(limit) not in (1, channels):
                    raise InputError(
                        f"a limit has {len(limit)} numbers: expected one, or one for each of {channels} channels"
                    )
        return cls(image=image, colors=colors, constraint=constraint)

    @property
    def is_identity(self) -> bool:
        """Whether the pixels themselves are optimised."""
        return isinstance(self.image, Pixels) and self.colors is None

    def decode(self, parameters: Tensor) -> Tensor:
        """(batch, C, H, W) → the images, within what bounds the problem."""
        if self.is_identity:
            return parameters
        x = self.image.decode(parameters)
        if not self.image.has_scale and not self.constraint.fixes_mean:
            x = standardize(x)
        if self.colors is not None:
            x = self.colors.mix(x)
        return self.constraint.bound(x)

    def settle(self, parameters: Tensor) -> Tensor:
        """After a step: pixels within their bounds, other numbers at one size, since a step's is relative to it."""
        if self.is_identity:
            return self.constraint.bound(parameters)
        if isinstance(self.image, Phases):
            return self.image.even(parameters)
        if not self.constraint.fixes_contrast:
            return parameters
        if self.image.has_places and self.colors is None and self.constraint.fixes_mean:
            return standardize(parameters)
        return parameters / (rms(parameters) + TINY)

    def of_noise(self, noise: Tensor) -> Tensor:
        """The numbers that begin as noise (batch, C, H, W): its wavelengths are the image's, its channels are mixed."""
        return self.image.encode(noise)

    def of_images(self, images: Tensor) -> Tensor:
        """The numbers that begin as these images; but for pen, blur and phases they stand for just them."""
        return self.image.encode(images if self.colors is None else self.colors.separate(images))
