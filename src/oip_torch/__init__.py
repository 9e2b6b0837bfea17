"""Original input patterns (OIPs) of the feature maps of a CNN trained in Keras, made in PyTorch.

Everything public is here; it is imported when first used, since torch, onnx2torch and matplotlib take seconds.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # without typing the command line is sooner where it answers Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from oip_torch import plots
    from oip_torch.ascent import AscentSettings
    from oip_torch.calibration import Calibration, calibrate
    from oip_torch.comparison import Comparison, compare
    from oip_torch.conversion import convert
    from oip_torch.errors import CaptureError, ConversionError, InputError, OipError, ProofError
    from oip_torch.hooks import FeatureMaps, capture
    from oip_torch.image_files import read_images
    from oip_torch.model import FeatureModel, load
    from oip_torch.oips import Oips
    from oip_torch.onnx_file import Layer, Network
    from oip_torch.quality import Quality, assess
    from oip_torch.search import ascend
    from oip_torch.starts import StartSettings, start_images

_HOMES = {
    "Calibration": "calibration",
    "Comparison": "comparison",
    "Quality": "quality",
    "assess": "quality",
    "calibrate": "calibration",
    "read_images": "image_files",
    "AscentSettings": "ascent",
    "CaptureError": "errors",
    "ConversionError": "errors",
    "FeatureMaps": "hooks",
    "FeatureModel": "model",
    "InputError": "errors",
    "Layer": "onnx_file",
    "Network": "onnx_file",
    "OipError": "errors",
    "Oips": "oips",
    "ProofError": "errors",
    "StartSettings": "starts",
    "ascend": "search",
    "capture": "hooks",
    "compare": "comparison",
    "convert": "conversion",
    "load": "model",
    "start_images": "starts",
}

__all__ = [
    "AscentSettings",
    "Calibration",
    "CaptureError",
    "Comparison",
    "ConversionError",
    "FeatureMaps",
    "FeatureModel",
    "InputError",
    "Layer",
    "Network",
    "OipError",
    "Oips",
    "ProofError",
    "Quality",
    "StartSettings",
    "ascend",
    "assess",
    "calibrate",
    "capture",
    "compare",
    "convert",
    "load",
    "plots",
    "read_images",
    "start_images",
]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("oip_torch.plots")
    if name == "__version__":
        from importlib.metadata import version

        return version("oip_torch")
    if name not in _HOMES:
        raise AttributeError(f"module 'oip_torch' has no attribute {name!r}")
    # No submodule may bear a public function's name: importing it would put the module in the function's place.
    value = getattr(importlib.import_module(f"oip_torch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
