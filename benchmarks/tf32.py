"""What would TF32 cost in accuracy? Told without a GPU.

    python benchmarks/tf32.py

A tensor core that works in TF32 rounds the factors of every product to 10 bits and adds up in float32. Rounding the
weights, the inputs and the gradients of the convolutions in the same way on a CPU shows what that does, whatever card
it would run on. Compared with float32 on the OIPs of every map that lives: each layer's output, the scores, and the
direction of the gradient; the median over the maps, and in brackets the largest.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import oip_torch as oip
from oip_torch.optim.objectives import map_mean

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("Conv2D_1", "Conv2D_2", "Conv2D_3")
_DROPPED = 13  # of the 23 bits of a float32's fraction


def rounded(tensor: Tensor) -> Tensor:
    """To the nearest number with 10 bits of fraction, to the even one of two."""
    bits = tensor.contiguous().view(torch.int32)
    half = (1 << (_DROPPED - 1)) - 1 + ((bits >> _DROPPED) & 1)
    return ((bits + half) & -(1 << _DROPPED)).view(torch.float32)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def with_tf32(model: oip.FeatureModel) -> oip.FeatureModel:
    """A copy whose convolutions work on rounded factors, forward and back."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda module, inputs: (_Rounded.apply(inputs[0]),))
            module.register_full_backward_pre_hook(lambda module, gradients: (rounded(gradients[0]),))
    return model


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = oip.convert(ROOT / "models" / "mnist_cnn.keras", Path(folder) / "network.onnx", device="cpu")
    other = with_tf32(model)
    print("| layer | output: largest error over its maximum | scores: relative error | gradient: 1 - cosine |")
    print("|---|---|---|---|")
    for layer in LAYERS:
        oips = oip.ascend(model, layer, settings=oip.AscentSettings.within(60))
        oips = oips.take((oips.scores > 0).nonzero()[0])
        images = torch.from_numpy(oips.images.transpose(0, 3, 1, 2).copy())
        maps = torch.from_numpy(oips.maps)
        outputs, scores, gradients = [], [], []
        for network in (model, other):
            x = images.clone().requires_grad_()
            output = network.up_to(layer)(x)
            score = map_mean(output, maps)
            gradients.append(torch.autograd.grad(score.sum(), x)[0].flatten(1).double())
            outputs.append(output.detach())
            scores.append(score.detach())
        error = (outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max()
        relative = (scores[1] - scores[0]).abs() / scores[0]
        turned = 1 - nn.functional.cosine_similarity(*gradients)
        print(
            f"| {layer} | {error:.1e} | {relative.median():.1e} ({relative.max():.1e}) "
            f"| {turned.median():.1e} ({turned.max():.1e}) |"
        )


if __name__ == "__main__":
    main()
