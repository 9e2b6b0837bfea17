"""How does the ONNX file run in ONNX Runtime? Forward only."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

from oip_torch.base.layouts import channels_first, channels_last
from oip_torch.comparison.runtimes import BEFORE, Array, Dtype, Runtime
from oip_torch.network.onnx_file import read

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU.

    `optimised`: with its default graph optimisations. They are off otherwise, since they are not the truth: PadFusion
    turns a zero padding before a max-pooling into one of minus infinity.
    """

    def __init__(self, keras_file: Path, onnx_file: Path, *, optimised: bool = False) -> None:
        proto, network = read(onnx_file, check_digest=False)
        self.tensors = {layer.name: layer.tensor for layer in network.layers}
        self.tensors |= {
            BEFORE + layer.name: layer.tensor_before for layer in network.layers if layer.tensor_before != layer.tensor
        }
        outputs = {output.name for output in proto.graph.output}
        for tensor in sorted(set(self.tensors.values()) - outputs):
            proto.graph.output.add(name=tensor)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # it does not look there itself
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def layers(self, images: Array, dtype: Dtype) -> dict[str, Array]:
        (image,) = self.session.get_inputs()
        outputs = self.session.run(list(self.tensors.values()), {image.name: channels_first(images).astype(dtype)})
        return {name: channels_last(output) for name, output in zip(self.tensors, outputs, strict=True)}
