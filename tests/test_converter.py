"""onnx2torch comes without torchvision, and loses nothing by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOADS = """
import sys
import oip_torch

oip_torch.load(sys.argv[1], device="cpu")
print([name for name in ("torchvision", "torch._dynamo", "sympy", "matplotlib") if name in sys.modules])
"""
USES = """
import sys
import torch
from oip_torch.network.converter import onnx2torch_module

onnx2torch_module()
assert "torchvision" not in sys.modules
from onnx2torch.node_converters.nms import OnnxNonMaxSuppression
from onnx2torch.node_converters.roialign import roi_align

boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.1, 4.0], [5.0, 5.0, 9.0, 9.0]]])
scores = torch.tensor([[[0.9, 0.8, 0.7]]])
kept = OnnxNonMaxSuppression()(boxes, scores, torch.tensor([3]), torch.tensor([0.5]), torch.tensor([0.1]))
print(kept[:, 2].tolist())
import torchvision

maps, of = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
print(torch.equal(roi_align(maps, of, (1, 1)), torchvision.ops.roi_align(maps, of, (1, 1))))
"""


def run(code: str, *given: str | Path) -> str:
    answer = subprocess.run([sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_loading_imports_no_torchvision_and_no_compiler(mnist_onnx: Path) -> None:
    assert run(LOADS, mnist_onnx) == "[]\n"


def test_what_needs_torchvision_gets_it() -> None:
    assert run(USES) == "[0, 2]\nTrue\n"
