"""How much memory work takes: counted from outside, and estimated in advance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from oip_torch import AscentSettings, FeatureModel, InputError, ascend
from oip_torch.base.platform import costs, free_bytes, in_words

KIB = 1024
LIBRARIES = 32 << 20  # what is estimated for kernels and threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is counted is one thread's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_tensors_count_while_they_live() -> None:
    def work() -> torch.Tensor:
        a = torch.zeros(2 * KIB)  # 8 KiB
        b = a + 1  # 16 KiB
        del a
        c = b.view(-1, 2)[:, 0]  # nothing new
        return c * 2  # 12 KiB more than b's 8: 4 KiB

    assert costs(work).bytes == 16 * KIB
    assert costs(lambda: torch.ones(0)) == (0, 0)


def test_the_way_back_is_counted() -> None:
    x = torch.zeros(KIB, requires_grad=True)

    def work() -> None:
        (x.exp().exp().sum()).backward()

    assert costs(work).bytes >= 2 * 4 * KIB


@pytest.mark.parametrize(
    ("module", "shape", "forward"),
    [
        (nn.Conv2d(3, 8, 5), (3, 12, 10), 8 * 8 * 6 * 3 * 25),
        (nn.Conv2d(6, 12, 3, groups=3, bias=False), (6, 7, 7), 12 * 5 * 5 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 4 * 5 * 5 * 6 * 9),
        (nn.Linear(30, 7), (30,), 30 * 7),
        (nn.Linear(30, 7, bias=False), (11, 30), 11 * 30 * 7),
    ],
)
def test_multiply_adds_are_counted_on_both_ways(module: nn.Module, shape: tuple[int, ...], forward: int) -> None:
    module.requires_grad_(False)
    x = torch.zeros(4, *shape, requires_grad=True)
    with torch.no_grad():
        assert costs(lambda: module(x)).products == 4 * forward
    assert costs(lambda: module(x).sum().backward()).products == 4 * 2 * forward


def test_words() -> None:
    assert [in_words(count) for count in (512, 1536, 3 << 20, 5.5 * 2**30, 2**44)] == [
        "512 bytes",
        "1.5 KiB",
        "3 MiB",
        "5.5 GiB",
        "1.64e+04 GiB",
    ]


def test_there_is_memory() -> None:
    assert free_bytes(torch.device("cpu")) > 1 << 20


@pytest.mark.parametrize("layer", ["Conv2D_1", "Conv2D_3", "Dense_1"])
@pytest.mark.parametrize(
    "settings",
    [AscentSettings.article(steps=12), AscentSettings.within(60), AscentSettings.within(60, snapshots=())],
    ids=["article", "within 60", "no snapshots"],
)
def test_what_is_estimated_is_enough(
    model: FeatureModel, layer: str, settings: AscentSettings, one_thread: None
) -> None:
    """Tensors take at most what the plan says without the shares of allocator and libraries, and not far from it.

    Less the weights, which are there already: they are seen since their digest is taken.
    """
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    runs = []
    peak = costs(
        lambda: runs.append(ascend(model, layer, range(10), starts=4, settings=settings, batch_size=20, progress=False))
    ).bytes
    found = runs[0]
    arrays = ("images", "scores", "max_preactivation", "traces", "snapshots", "converged_at", "status")
    results = sum(getattr(found, name).nbytes for name in arrays)
    work = (found.provenance.predicted_bytes - results - LIBRARIES) / 2.0
    assert 0.4 * work < peak - weights < work


def test_little_memory_means_small_batches_and_the_same_images(model: FeatureModel) -> None:
    settings = AscentSettings.within(12)
    whole = ascend(model, "Conv2D_3", range(8), settings=settings)
    least = ascend(model, "Conv2D_3", range(8), settings=settings, memory=LIBRARIES + (2 << 20))
    assert least.provenance.predicted_bytes <= LIBRARIES + (2 << 20) < whole.provenance.predicted_bytes
    assert np.abs(whole.images - least.images).max() < 1e-3


def test_memory_does_not_grow_with_the_number_of_images(model: FeatureModel) -> None:
    """Beyond a batch for each core only the results do."""
    settings = dataclasses.replace(AscentSettings.within(4), snapshots=())
    few, many = (ascend(model, "Conv2D_1", [0], starts=count, settings=settings) for count in (512, 1024))
    names = ("images", "scores", "max_preactivation", "traces", "converged_at", "status")
    results = sum(getattr(few, name)[:1].nbytes for name in names)
    assert many.provenance.predicted_bytes - few.provenance.predicted_bytes == 512 * results


def test_too_much_is_refused_before_anything_is_done(model: FeatureModel) -> None:
    message = (
        r"OIPs of 'Conv2D_3', 12800 in number, need .* MiB of memory, .* MiB of it for the results, and 100 MiB may be "
        r"used: ask for fewer maps or starts, keep fewer snapshots \(AscentSettings\(snapshots=\(\)\)\), or allow more"
    )
    with pytest.raises(InputError, match=message):
        ascend(model, "Conv2D_3", starts=100, memory=100 << 20)
    with pytest.raises(InputError, match="memory is 0: expected a whole number, 1 or more"):
        ascend(model, "Conv2D_3", [0], memory=0)
