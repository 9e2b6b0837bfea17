"""What does each part of the engine bring?

    python benchmarks/tricks.py [--rounds 9]

One part at a time is left out, in turns, in one process and one thread: `oip.ascend` by the article's settings, on the
maps of each convolution that respond to their start (64 at most), since others would leave after the first step.
Printed are the median µs per image-step; where a part is left out and they are more, it pays.
"""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import bench_tools as bench

LAYERS, STEPS, IMAGES = ("Conv2D_1", "Conv2D_2", "Conv2D_3"), 60, 64


def main() -> None:
    made = bench.parser(__doc__, "tricks", rounds=9)
    made.add_argument("--steps", type=int, default=STEPS)
    options = made.parse_args()
    import torch
    from torch.utils.benchmark import Compare, Measurement, Timer

    import oip_torch as oip
    from oip_torch.network import passes
    from oip_torch.optim.objectives import Objective

    without = {
        "(whole engine)": nullcontext(),
        "identity reshapes left out": mock.patch.object(passes, "_drop_idle_reshapes", return_value=None),
        "pooling before the ReLU": mock.patch.object(passes, "_pool_first", return_value=None),
        "no unread rows and columns": mock.patch.object(passes, "_cut_unread", return_value=None),
        "one map of the last convolution": mock.patch.object(Objective, "reads_one_channel", False),
        "channels innermost": mock.patch.object(passes, "_channels_last", lambda module: module),
        "gradient of the first convolution by a product": mock.patch.object(passes, "_FEW", 0),
    }
    torch.set_num_threads(1)
    with bench.workplace(options.network) as (_, network):
        model = oip.load(network, device="cpu")
    first = {layer: oip.ascend(model, layer, settings=oip.AscentSettings.article(steps=1)) for layer in LAYERS}
    maps = {layer: oips.maps[oips.scores > 0][:IMAGES].tolist() for layer, oips in first.items()}
    settings = oip.AscentSettings.article(steps=options.steps)
    found = []
    for layer, part in bench.turns([(layer, part) for part in without for layer in LAYERS], options.rounds):
        job = {"ascend": oip.ascend, "model": model, "layer": layer, "maps": maps[layer], "settings": settings}
        call = "ascend(model, layer, maps, settings=settings, progress=False)"
        timer = Timer(call, globals=job, label="µs per image-step", sub_label=part, description=layer)
        with without[part]:
            times = timer.blocked_autorange().raw_times
        found.append(Measurement(options.steps * len(maps[layer]), times, timer._task_spec))
    print(Compare(found))


if __name__ == "__main__":
    main()
