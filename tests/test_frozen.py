"""Results are what they were: outputs of commit 13d2a9e, frozen in tests/data/frozen.npz.

In float64, where rounding differs from one processor to the next by 1e-16, and an ascent amplifies it by some orders of
magnitude; on one machine they are equal to the last bit, in float32 as well (docs/notes has the comparison). Of images
and snapshots a projection on fixed noise is kept. A change of the method changes them on purpose: then freeze anew, by
`python tests/test_frozen.py`, and say why in the commit.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from oip_torch import AscentSettings, FeatureModel, Oips, ascend, load
from oip_torch.optim.objectives import map_peak

FILE = ROOT / "tests" / "data" / "frozen.npz"
CASES: dict[str, tuple[AscentSettings, dict[str, Any]]] = {
    "article": (AscentSettings.article(steps=40), {}),
    "default": (AscentSettings.within(100), {}),
    "converged": (AscentSettings.article(steps=200, tolerance=5e-3, stop="converged"), {}),
    "stages": (AscentSettings.article(stages=(6, 6, 6, 6)), {}),
    "snapshots": (AscentSettings.article(steps=20, snapshots=(0, 7, 19)), {}),
    "map_peak": (AscentSettings.within(60), {"objective": map_peak}),
}
MAPS = {"Conv2D_1": [0, 7, 13, 31], "Conv2D_2": list(range(8, 24)), "Conv2D_3": [3, 14, 56, 100]}


def figures(oips: Oips) -> dict[str, npt.NDArray[Any]]:
    noise = np.random.Generator(np.random.Philox(key=3)).standard_normal((28, 28, 1))
    return {
        "scores": oips.scores,
        "traces": oips.traces,
        "projections": (oips.images * noise).sum((1, 2, 3)),
        "snapshots": (oips.snapshots * noise).sum((2, 3, 4)),
        "converged_at": oips.converged_at,
        "status": oips.status,
        "max_preactivation": oips.max_preactivation,
    }


@pytest.fixture(scope="module")
def double(model: FeatureModel) -> FeatureModel:
    return copy.deepcopy(model).double()


@pytest.mark.parametrize("layer", MAPS)
@pytest.mark.parametrize("case", CASES)
def test_results_are_what_they_were(double: FeatureModel, layer: str, case: str) -> None:
    settings, more = CASES[case]
    oips = ascend(double, layer, MAPS[layer], settings=settings, **more)
    with np.load(FILE, allow_pickle=False) as frozen:
        for name, got in figures(oips).items():
            want = frozen[f"{layer}/{case}/{name}"]
            if got.dtype.kind == "f":
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6, err_msg=name)
            else:
                assert got.tolist() == want.tolist(), name


def test_every_status_is_among_them() -> None:
    with np.load(FILE, allow_pickle=False) as frozen:
        found = {status for name in frozen.files if name.endswith("/status") for status in frozen[name].tolist()}
    assert found == {"finished", "converged", "recovered", "dead"}


if __name__ == "__main__":
    network = load(ROOT / "models" / "mnist_cnn.onnx", device="cpu").double()
    arrays = {
        f"{layer}/{case}/{name}": values
        for layer, maps in MAPS.items()
        for case, (settings, more) in CASES.items()
        for name, values in figures(ascend(network, layer, maps, settings=settings, **more)).items()
    }
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
