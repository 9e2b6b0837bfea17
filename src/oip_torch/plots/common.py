"""What do pictures of OIPs share? That there are some, and what their channels are called."""

from __future__ import annotations

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError
from oip_torch.results.oips import Names, Oips

__all__ = ["called", "check_some"]


def check_some(oips: Oips) -> None:
    """An `InputError` where these are no OIPs, or none."""
    if not isinstance(oips, Oips):
        raise InputError(f"oips is {shown(oips)}: expected what oip_torch.ascend or Oips.load returns")
    if not len(oips):
        raise InputError("there are no OIPs to show: expected at least one")


def called(oips: Oips, names: Names | None) -> list[str]:
    """Of each image what its channel is called in a sentence: "map 17", or "class 3 (cat)" where there are names."""
    plain = [f"{oips.noun} {number}" for number in oips.maps]
    if names is None:
        return plain
    return [f"{number} ({name})" for number, name in zip(plain, oips.channel_names(names), strict=True)]
