"""What would TF32 cost in accuracy? Told without a GPU.

    python benchmarks/tf32.py

A tensor core that works in TF32 rounds the factors of every product to 10 bits and adds up in float32. Rounding the
weights, the inputs and the gradients of the convolutions in the same way on a CPU shows what that does, whatever card
it would run on. Compared with float32 on the OIPs of every map that lives: each layer's output, the scores, and the
direction of the gradient; the median over the maps, and in brackets the largest.
"""

from __future__ import annotations

import copy

import bench_tools as bench
import torch
from torch import Tensor, nn

import oip_torch as oip
from oip_torch.optim.objectives import map_mean

LAYERS = ("Conv2D_1", "Conv2D_2", "Conv2D_3")
DROPPED = 13  # of the 23 bits of a float32's fraction


def rounded(tensor: Tensor) -> Tensor:
    """To the nearest number with 10 bits of fraction, to the even one of two."""
    bits = tensor.detach().contiguous().view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return ((bits + half) & -(1 << DROPPED)).view(torch.float32)


def with_tf32(model: oip.FeatureModel) -> oip.FeatureModel:
    """A copy whose convolutions work on rounded factors, forward and back."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = rounded(module.weight)
            # The gradient passes the rounding of the input as if it were not there.
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] + (rounded(inputs[0]) - inputs[0]).detach(),))
            module.register_full_backward_pre_hook(lambda _, gradients: (rounded(gradients[0]),))
    return model


def main() -> None:
    with bench.workplace() as (_, network):
        model = oip.load(network, device="cpu")
    rows = []
    for layer in LAYERS:
        oips = oip.ascend(model, layer, settings=oip.AscentSettings.within(60))
        oips = oips.take((oips.scores > 0).nonzero()[0])
        x, maps = (
            torch.from_numpy(oips.images.transpose(0, 3, 1, 2).copy()).requires_grad_(),
            torch.from_numpy(oips.maps),
        )
        output, other = (network.up_to(layer)(x) for network in (model, with_tf32(model)))
        scores = [map_mean(each, maps) for each in (output, other)]
        gradients = [torch.autograd.grad(score.sum(), x)[0].flatten(1).double() for score in scores]
        relative = ((scores[1] - scores[0]).abs() / scores[0]).detach()
        turned = 1 - nn.functional.cosine_similarity(*gradients)
        row = {"layer": layer}
        row |= {"output: largest error over its maximum": f"{(other - output).abs().max() / output.abs().max():.1e}"}
        row |= {"scores: relative error": f"{relative.median():.1e} ({relative.max():.1e})"}
        rows.append(row | {"gradient: 1 - cosine": f"{turned.median():.1e} ({turned.max():.1e})"})
    print(bench.table(rows, {title: title for title in rows[0]}))


if __name__ == "__main__":
    main()
