"""How is a comparison told in a few lines?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oip_torch.comparison.bounds import BOUNDS
from oip_torch.comparison.findings import DIVERGED, Divergence, Findings

__all__ = ["float32_sentence", "table"]


def float32_sentence(
    findings: Mapping[str, Findings], layouts: Divergence | None, *, reference: str, ascents: int
) -> str:
    """What so many float32 ascents show, and whether float64 verifies that it is rounding."""
    diverged = [
        f"{found.divergence.diverged} of {ascents} maps in {name}"
        for name, found in findings.items()
        if found.divergence is not None and name != reference and found.spec.counted
    ]
    text = (
        f"In float32, ascents of the same map that start alike end more than {DIVERGED:.1%} apart in score from "
        f"{reference}'s for {', '.join(diverged)}"
    )
    if layouts is not None:
        text += f"; torch diverges as far from itself, in another memory layout, for {layouts.diverged}"
    errors = [found.trace.value for found in findings.values() if found.trace is not None]
    if errors and all(error <= BOUNDS["trace_error_float64"] for error in errors):
        return f"{text}. In float64 all traces agree to {max(errors):.1e}: the difference is rounding."
    return f"{text}. In float64 they diverge as well: this is not rounding alone."


def table(report: Mapping[str, Any]) -> list[str]:
    """A line for each runtime, from the numbers of the report."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    head = ["runtime", "layers", "layers 64", "gradients", "traces 64", "images 64", "images 32"]
    rows = [head]
    for name, entry in report["runtimes"].items():
        errors = [entry["layers"], entry["layers_float64"]]
        worst = [None if by is None or None in by.values() else max(by.values()) for by in errors]
        cosine, correlation = entry["gradient_cosine"], entry["image_correlation"]
        single = entry["float32"] and entry["float32"]["image_correlation"]
        rows.append(
            [
                name + ("" if entry["counted"] else " *"),
                *(shown(value, ".1e") for value in worst),
                shown(cosine, ".9f"),
                shown(entry["trace_max_relative_error"], ".1e"),
                shown(correlation, ".9f"),
                shown(single and single["median"], ".6f"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown_only = any(not entry["counted"] for entry in report["runtimes"].values())
    return [*lines, "* shown, but not counted"] if shown_only else lines
