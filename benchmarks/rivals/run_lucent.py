"""Times lucent: all maps of Conv2D_3 in one batch.

    python run_lucent.py KERAS_FILE ONNX_FILE FOLDER [--steps 600]

The network is the converted one, cut at the layer and read by onnx2torch. `param_f` hands lucent the start images
themselves as its parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from common import EPSILON, LAYER, Job, run


def prepare(job: Job) -> Callable[[int], Any]:
    import onnx
    import torch
    from lucent.optvis.render import render_vis
    from onnx2torch import convert

    whole = onnx.load(job.onnx_file)
    cut = onnx.utils.Extractor(whole).extract_model([whole.graph.input[0].name], [LAYER])
    model = torch.nn.Sequential(OrderedDict({LAYER: convert(cut)}))  # lucent finds layers by their modules' names
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # saves a fifth of the time
    starts = torch.from_numpy(job.starts.transpose(0, 3, 1, 2)).contiguous()
    every = torch.arange(len(starts))

    # A sum of lucent's own objectives, one channel and image each, is the same and takes a tenth longer.
    def objective(layer: Callable[[str], Any]) -> Any:
        return -layer(LAYER)[every, every].mean((1, 2)).sum()

    def standardize(images: Any) -> Any:
        deviation, mean = torch.std_mean(images, (1, 2, 3), correction=0, keepdim=True)
        return (images - mean) / deviation.clamp_min(images[0].numel() ** -0.5)

    def work(steps: int) -> Any:
        images = starts.clone().requires_grad_()
        return render_vis(
            model,
            objective,
            param_f=lambda: ([images], lambda: images),
            optimizer=lambda parameters: torch.optim.Adam(parameters, EPSILON),
            transforms=[standardize],
            thresholds=(steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=False,  # None would scale small images up to 224, and 28 to 28
        )[-1]

    return work


if __name__ == "__main__":
    run(prepare, ("torch-lucent", "torch", "torchvision", "onnx2torch", "numpy"), __doc__)
