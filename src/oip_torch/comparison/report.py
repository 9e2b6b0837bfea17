"""How is a comparison shown on a page?"""

from __future__ import annotations

import base64
import io

from jinja2 import Environment, PackageLoader, StrictUndefined

from oip_torch.base.drawing import Figure
from oip_torch.plots import comparison as plots

__all__ = ["page"]


def page(comparison: plots.Compared) -> str:
    """HTML that needs no other file: the verdict, the figures of each runtime, and pictures inside."""
    # Names of layers and files come from untrusted files: autoescape.
    environment = Environment(loader=PackageLoader("oip_torch", "data"), autoescape=True, undefined=StrictUndefined)
    pictures = [
        (
            "Agreement",
            "How far each runtime is from the reference, over the reference's largest value: layers in float32, the "
            "gradient of a map's mean (one minus its cosine), whole ascents in float64. Red: above the bound.",
            plots.agreement(comparison),
        ),
        (
            "Traces",
            "The scores of single maps by step, laid over each other in float32; and how far all traces are from the "
            "reference's, in float32 and in float64.",
            plots.divergence(comparison),
        ),
        (
            "Images",
            "What each runtime's float32 ascent ends with, from the same start; below it the difference from the "
            "reference's image, white where there is none.",
            plots.side_by_side(comparison),
        ),
        (
            "Cross-scores",
            "OIPs made in one runtime and scored in every other: the largest difference from the score that the "
            "reference gives them, over its largest score.",
            plots.cross_scores(comparison),
        ),
    ]
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        report=comparison.report,
        pictures=[(title, text, _png(figure)) for title, text, figure in pictures],
    )


def _png(figure: Figure) -> str:
    """A data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
