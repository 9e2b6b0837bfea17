"""What is found in made-up answers: the figures, the bounds that break, the entries of the report and its sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from oip_torch.comparison.answers import Ascents, Errors
from oip_torch.comparison.bounds import BOUNDS, Disagreement, disagreements_of
from oip_torch.comparison.differences import GradientDifference, Worst
from oip_torch.comparison.entries import disagreement_entry, divergence_entry, runtime_entry
from oip_torch.comparison.findings import Findings, diverge, layout_divergence, runtime_findings
from oip_torch.comparison.questions import Questions
from oip_torch.comparison.runtimes import RUNTIMES, Dtype
from oip_torch.comparison.summary import float32_sentence
from oip_torch.network.domain import Domain

CHANNELS = np.array([5, 7, 2])


def questions() -> Questions:
    return Questions(
        layers=["a", "b"],
        images={"noise": np.zeros((1, 4, 4, 1))},
        gradient_channels={},
        gradient_images=np.zeros((1, 4, 4, 1)),
        layer="b",
        tap="b",
        channel_count=8,
        channels=CHANNELS,
        starts=np.zeros((3, 4, 4, 1)),
        domain=Domain(),
        steps=20,
        epsilon=0.01,
        seed=0,
    )


def errors(layer: float = 0.0, cosine: float = 1.0) -> Errors:
    dtypes: tuple[Dtype, ...] = ("float32", "float64")
    gradient = GradientDifference(cosine=Worst(cosine, 6), error=0.0, saturated=1)
    return Errors(
        layers={
            dtype: {
                "noise": {"a": Worst(0.0, 0), "b": Worst(layer, 4)},
                "digits": {"a": Worst(0.0, 0), "b": Worst(layer / 2, 3)},
            }
            for dtype in dtypes
        },
        gradients={dtype: {"before:b": gradient} for dtype in dtypes},
    )


def ascents(changed: float = 0.0) -> dict[Dtype, Ascents]:
    """The third channel is dead; the second one's last score is changed by so much."""
    rng = np.random.default_rng(0)
    traces, images = rng.uniform(1, 2, (3, 20)), rng.normal(size=(3, 4, 4, 1))
    traces[2] = 0
    traces[1, -1] *= 1 + changed
    return {"float32": Ascents(traces=traces, images=images), "float64": Ascents(traces=traces, images=images)}


def found(
    name: str = "torch", *, changed: float = 0.0, scored: float = 0.0, layer: float = 0.0, cosine: float = 1.0
) -> Findings:
    scores = {"tensorflow": np.array([1.0, 2.0, 3.0])}
    said = {"tensorflow": np.array([1.0, 2.0, 3.0 + scored])}
    measured = errors(layer, cosine)
    return runtime_findings(name, questions(), measured, ascents(changed), ascents(), said, scores)


def test_divergence_tells_how_float32_runs_diverge() -> None:
    rng = np.random.default_rng(0)
    traces, images = rng.uniform(1, 2, (4, 20)), rng.normal(size=(4, 5, 5, 1))
    traces[3] = 0
    want = Ascents(traces=traces, images=images)
    moved = traces.copy()
    moved[0, -1] *= 1.01
    found = diverge(Ascents(traces=moved, images=images), want)
    assert list(found.steps) == [1, 10, 20]
    assert found.steps[20].worst == pytest.approx(0.01)
    assert found.diverged == 1
    assert found.correlation is not None
    assert found.correlation.worst == pytest.approx(1)
    short = diverge(Ascents(traces=traces[:, :10], images=images), Ascents(traces=traces[:, :10], images=images))
    assert list(short.steps) == [1, 10]
    dead = Ascents(traces=np.zeros((2, 5)), images=images[:2])
    assert diverge(dead, dead).correlation is None
    assert divergence_entry(diverge(dead, dead)) == {"steps": {}, "image_correlation": None, "parted": 0}


def test_torch_is_laid_beside_itself_only_where_both_ways_ran() -> None:
    both = {"torch": ascents(), "torch-plain": ascents(0.01)}
    layouts = layout_divergence(both)
    assert layouts is not None
    assert layouts.diverged == 1
    assert layout_divergence({"torch": ascents()}) is None


def test_findings_name_the_channel_that_is_worst() -> None:
    findings = found(changed=1e-8, scored=0.3)
    assert findings.trace == Worst(pytest.approx(1e-8), 7)
    assert findings.images is not None
    assert findings.images.value == pytest.approx(1)
    assert findings.scores["tensorflow"].error == Worst(pytest.approx(0.1), 2)
    assert findings.scores["tensorflow"].rank == pytest.approx(1)
    assert findings.dead is not None
    assert (findings.dead["float64"].dead, findings.dead["float64"].unlike_reference) == ([2], [])
    assert found(layer=0.5).worst_layers("float32") == {"a": Worst(0.0, 0), "b": Worst(0.5, 4)}


def test_a_channel_that_is_dead_in_one_runtime_alone_is_named() -> None:
    alive = ascents()
    alive["float64"].traces[2, -1] = 1
    findings = runtime_findings("torch", questions(), errors(), alive, ascents(), {}, {})
    assert findings.dead is not None
    assert findings.dead["float64"].unlike_reference == [2]
    assert findings.trace == Worst(math.inf, 2)


@pytest.mark.parametrize(
    ("broken", "what", "layer", "channel"),
    [
        ({"layer": 1e-4}, "relative error in float32", "b", 4),
        ({"cosine": 0.9}, "gradient cosine in float32", "b", 6),
        ({"cosine": math.nan}, "gradient cosine in float32", "b", 6),
        ({"changed": 1e-8}, "trace's relative error in float64", "b", 7),
        ({"changed": math.nan}, "trace's relative error in float64", "b", 7),
        ({"scored": 1e-3}, "relative error in scoring tensorflow's OIPs", "b", 2),
    ],
)
def test_a_broken_bound_is_named(broken: dict[str, float], what: str, layer: str, channel: int) -> None:
    first = disagreements_of(found(**broken))[0]
    assert (first.runtime, first.what, first.layer, first.map) == ("torch", what, layer, channel)
    assert disagreements_of(dataclasses.replace(found(**broken), spec=RUNTIMES["torch-cuda-tf32"])) == []


def test_what_holds_is_no_disagreement() -> None:
    assert disagreements_of(found()) == []


def test_a_disagreement_is_one_sentence() -> None:
    disagreement = Disagreement(
        runtime="jax", what="gradient cosine", got=math.inf, bound=BOUNDS["gradient_cosine"], layer="b", map=3
    )
    message = "layer 'b', map 3: jax has a gradient cosine of inf, but at least 0.99999 is allowed"
    assert str(disagreement) == message
    assert disagreement_entry(disagreement) == {
        "runtime": "jax",
        "what": "gradient cosine",
        "got": None,
        "bound": 0.99999,
        "layer": "b",
        "map": 3,
        "message": message,
    }


def test_an_entry_keeps_its_keys_and_fits_into_json() -> None:
    def keys(value: Any) -> Any:
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    spread = {"median": None, "max": None}
    dead = {"dead": None, "other_than_reference": None}
    gradients = {"before:b": {"cosine": None, "relative_error": None, "saturated": None}}
    entry = runtime_entry(found(layer=math.inf, changed=math.nan), 1.26)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert keys(entry) == {
        "title": None,
        "counted": None,
        "versions": {"torch": None},
        "layers": {"a": None, "b": None},
        "layers_float64": {"a": None, "b": None},
        "layers_by_images": {"noise": {"a": None, "b": None}, "digits": {"a": None, "b": None}},
        "gradient_cosine": None,
        "gradients": {"float32": gradients, "float64": gradients},
        "trace_max_relative_error": None,
        "image_correlation": None,
        "dead_maps": {"float32": dead, "float64": dead},
        "float32": {
            "steps": {"1": spread, "10": spread, "20": spread},
            "image_correlation": {"median": None, "least": None},
            "parted": None,
        },
        "scores": {"tensorflow": {"max_relative_error": None, "rank_correlation": None}},
        "seconds": None,
    }
    assert entry["layers"] == {"a": 0, "b": None}
    assert entry["trace_max_relative_error"] is entry["float32"]["steps"]["20"]["max"] is None
    assert entry["seconds"] == 1.3


def test_a_runtime_without_gradients_has_an_entry_all_the_same() -> None:
    forward = Errors(layers={"float32": errors().layers["float32"]}, gradients={})
    entry = runtime_entry(runtime_findings("onnxruntime", questions(), forward, {}, ascents(), {}, {}), 0)
    assert disagreements_of(found("onnxruntime")) == []
    for key in ("layers_float64", "gradient_cosine", "gradients", "trace_max_relative_error"):
        assert entry[key] is None
    for key in ("image_correlation", "dead_maps", "float32"):
        assert entry[key] is None


def test_the_sentence_reports_rounding_as_rounding_and_nothing_else() -> None:
    def sentence(*findings: Findings) -> str:
        by_name = {each.name: each for each in findings}
        return float32_sentence(by_name, None, reference="tensorflow", ascents=3)

    assert sentence(found("tensorflow"), found("torch")) == (
        "In float32, ascents of the same map that start alike end more than 0.1% apart in score from tensorflow's for "
        "0 of 3 maps in torch. In float64 all traces agree to 0.0e+00: the difference is rounding."
    )
    for wrong in (0.01, math.nan, math.inf):
        text = sentence(found("tensorflow"), found("torch", changed=wrong))
        assert text.endswith("In float64 they diverge as well: this is not rounding alone.")
    text = float32_sentence({"torch": found()}, diverge(*2 * [ascents()["float32"]]), reference="jax", ascents=3)
    assert "torch diverges as far from itself, in another memory layout, for 0" in text


def test_the_bounds_are_those_of_the_docs() -> None:
    text = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    for name, bound in BOUNDS.items():
        assert re.search(rf"`{name}`.*\b{bound}\b", text), name
