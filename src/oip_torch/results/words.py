"""How are results told in words: scores, numbers of maps, names of classes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError
from oip_torch.results.fields import Array

if TYPE_CHECKING:
    from oip_torch.results.oips import Oips

__all__ = ["Names", "channel_names", "checked_names", "plural", "ranges", "short", "title"]

Names = Sequence[str] | Array
"""What the classes of a layer are called, one name for each, in their order."""


def checked_names(names: Names, layer: str, count: int, least: int) -> list[str]:
    """The names of a layer's classes, each in one line.

    Args:
        names: a list, tuple or array of texts.
        layer: its name, for the messages.
        count: how many classes it has; 0: not known.
        least: how many it has at least.

    Raises:
        InputError: another number of names, or something else than text.
    """
    given = list(names) if isinstance(names, (list, tuple, np.ndarray)) else None
    if given is None or not all(isinstance(name, str) and name.strip() for name in given):
        raise InputError(f"names are {shown(names)}: expected a list of texts, one for each class")
    if (len(given) != count) if count else (len(given) < least):
        expected = str(count) if count else f"{least} or more"
        raise InputError(
            f"{len(given)} names are given for the classes of {layer!r}: expected {expected}, one for each in order"
        )
    return [" ".join(str(name).split()) for name in given]


def short(score: float, decimals: int = 2) -> str:
    """So many decimals, or as many as a small score needs to differ from 0."""
    return f"{score:.{decimals}f}" if score == 0 or abs(score) >= 0.5 * 10**-decimals else f"{score:.1g}"


def plural(noun: str) -> str:
    """ "map" → "maps", "class" → "classes"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → "0–2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def title(oips: Oips) -> str:
    """Of a picture of all: "Conv2D_3: 128 of 128 OIPs alive"."""
    numbers = set(oips.maps.tolist())
    whose = f"{oips.place}, {oips.noun} {oips.maps[0]}" if len(numbers) == 1 else oips.place
    several = "" if len(numbers) in (1, len(oips)) else f", of {len(numbers)} {plural(oips.noun)}"
    dead = oips.counts()["dead"]
    can_be_dead = oips.provenance.can_be_dead
    if can_be_dead is None:  # of an older file
        can_be_dead = not oips.pre_activation and oips.provenance.objective in ("map_mean", "map_peak")
    if not (can_be_dead or dead):  # where "dead" is never said, "alive" says nothing
        return f"{whose}: {len(oips)} OIP{'s' if len(oips) > 1 else ''}{several}"
    return f"{whose}: {len(oips) - dead} of {len(oips)} OIPs alive{several}"


def channel_names(oips: Oips, names: Names | None) -> list[str]:
    """See `Oips.channel_names`."""
    if names is None:
        return [str(number) for number in oips.maps]
    if oips.noun != "class":
        raise InputError(
            f"names are given for {plural(oips.noun)} of {oips.layer!r}: expected them only for a layer whose "
            "channels are classes; leave them out"
        )
    least = int(oips.maps.max(initial=-1)) + 1  # all that is known of a file that does not hold the count
    given = checked_names(names, oips.layer, oips.provenance.channels, least)
    return [given[number] for number in oips.maps.tolist()]
