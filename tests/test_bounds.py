"""The bounds hold for every image, are tight where the maximum is known, and say so where they know nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from oip_torch.base.tensors import standardize
from oip_torch.optim.constraint import Constraint, Range, Standardized
from oip_torch.search.bounds import ImageSet, NotCoveredError, UpperBounds

SHAPE = (2, 6, 5)
PIXELS = math.prod(SHAPE)


def traced(*layers: nn.Module, seed: int = 0) -> fx.GraphModule:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(values.abs() + 0.5 if name.endswith("var") else 0.5 * values)
    return fx.symbolic_trace(network)


NETWORKS = {
    "padded": lambda: traced(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 3, 3, padding=1)
    ),
    "pool first": lambda: traced(nn.Conv2d(2, 4, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 2)),
    "normalised": lambda: traced(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 1)),
    "deep": lambda: traced(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(),
        nn.Linear(5, 2),
    ),
}  # fmt: skip


def every_unit(bounds: UpperBounds) -> Tensor:
    count = math.prod(bounds.output_shape)
    return torch.eye(count, dtype=torch.float64).view(count, *bounds.output_shape)


def climbed(network: fx.GraphModule, unit: int, images: Constraint, scale: float, offset: float) -> float:
    """The largest value of a unit that 64 ascents reach."""
    x = images.bound(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    best = -math.inf
    for step in range(40):
        x.requires_grad_()
        value = network(offset + scale * x).flatten(1)[:, unit]
        best = max(best, float(value.detach().max()))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        length = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        x = images.bound(x.detach() + 0.95**step * math.sqrt(PIXELS) * 0.5 * gradient / length)
    return best


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("limits", [None, (-1.0, 2.0)])
def test_no_image_exceeds_its_bound(name: str, limits: tuple[float, float] | None) -> None:
    network = NETWORKS[name]()
    ends = [] if limits is None else [torch.full((PIXELS,), end, dtype=torch.float64) for end in limits]
    bounds = UpperBounds(network, SHAPE, ImageSet(PIXELS, *ends), (0.7, 0.2))
    rows = every_unit(bounds)[::11]
    found = bounds.of(rows, improvements=4)
    assert found.isfinite().all()
    images = Standardized() if limits is None else Range(limits=limits, turns=20)
    x = images.bound(torch.randn(2000, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    with torch.no_grad():
        values = network(0.2 + 0.7 * x).flatten(1)[:, ::11]
    assert (values.amax(0) <= found).all()
    for unit in (0, len(rows) - 1):  # those at the borders among them
        assert climbed(network, 11 * unit, images, 0.7, 0.2) <= float(found[unit])
    assert (found <= bounds.of(rows, improvements=0) + 1e-9).all()  # improvements improve


def test_of_a_linear_network_the_bound_is_the_maximum_also_at_padded_borders() -> None:
    network = traced(nn.Conv2d(2, 3, 3, padding=1))
    bounds = UpperBounds(network, SHAPE, ImageSet(PIXELS), (1.0, 0.0))
    rows = every_unit(bounds)
    zero = torch.zeros(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    exact = []
    for unit in range(len(rows)):
        value = network(zero).flatten()[unit]
        (gradient,) = torch.autograd.grad(value, zero)
        best = network(standardize(100 * gradient)).flatten()[unit]
        exact.append(float(best.detach()))
    torch.testing.assert_close(bounds.of(rows), torch.tensor(exact, dtype=torch.float64), rtol=3e-4, atol=3e-3)
    assert (bounds.of(rows) >= torch.tensor(exact)).all()


def test_beside_brute_force_where_the_images_are_a_circle() -> None:
    """Three pixels of mean 0 and standard deviation 1 have one free number, an angle."""
    network = traced(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6))
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    plane = torch.tensor([[1, -1, 0], [1, 1, -2]], dtype=torch.float64)
    plane /= torch.linalg.vector_norm(plane, dim=1, keepdim=True)
    circle = math.sqrt(3) * (angle.cos()[:, None] * plane[0] + angle.sin()[:, None] * plane[1])
    exact = network(circle.view(-1, 1, 1, 3)).amax(0)
    found = UpperBounds(network, (1, 1, 3), ImageSet(3), (1.0, 0.0)).of(torch.eye(6, dtype=torch.float64))
    assert (found >= exact).all()
    assert float((found - exact).min()) < 0.3  # and tells something


def test_a_unit_of_negative_weights_is_certified() -> None:
    network = traced(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2))
    last = network.get_submodule("3")
    last.weight.copy_(-last.weight.abs())
    last.bias.fill_(-0.125)
    bounds = UpperBounds(network, SHAPE, ImageSet(PIXELS), (1.0, 0.0))
    found = bounds.of(every_unit(bounds))
    torch.testing.assert_close(found, torch.full_like(found, -0.125), rtol=0, atol=1e-6)


def test_within_ends_the_dual_is_an_upper_bound_and_tight() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    low, high = torch.full((40,), -0.8, dtype=torch.float64), torch.full((40,), 2.0, dtype=torch.float64)
    images = ImageSet(40, low, high)
    exact, rough = images.maximum(a, exact=True), images.maximum(a)
    assert (exact <= rough + 1e-9).all()
    assert (rough <= ImageSet(40).maximum(a) + 1e-9).all()
    constrain = Range(limits=(-0.8, 2.0), turns=500).bound
    reached = torch.stack(
        [(constrain(row.view(1, 1, 5, 8) * gain).flatten() * row).sum() for row in a for gain in (1, 5)]
    )
    reached = reached.view(3, 2).amax(1)
    assert (reached <= exact).all()
    assert (exact <= 1.1 * reached).all()
    part = ImageSet(50, *(torch.full((50,), end, dtype=torch.float64) for end in (-0.8, 2.0)))
    assert (part.maximum(a) > rough).all()  # ten more pixels to make up for the mean


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.Sigmoid(), "Sigmoid"), (nn.GELU(), "GELU"), (nn.Softmax(1), "Softmax")]
)
def test_what_is_not_known_is_not_guessed(layer: nn.Module, name: str) -> None:
    network = traced(nn.Conv2d(2, 4, 3), layer, nn.Conv2d(4, 2, 2))
    with pytest.raises(NotCoveredError, match=name):
        UpperBounds(network, SHAPE, ImageSet(PIXELS), (1.0, 0.0))


class Conv2d(nn.Module):
    """Named as one that is linear, and none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_a_module_is_not_trusted_by_its_name() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("square", (graph.placeholder("x"),)))
    network = fx.GraphModule({"square": Conv2d()}, graph)
    with pytest.raises(NotCoveredError, match="Conv2d"):
        UpperBounds(network, SHAPE, ImageSet(PIXELS), (1.0, 0.0))
