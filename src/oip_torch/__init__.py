"""Original input patterns (OIPs) of the feature maps of a CNN trained in Keras, made in PyTorch.

Everything public is here; it is imported when first used, since torch, onnx2torch and matplotlib take seconds.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # without typing the command line is sooner where it answers Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from oip_torch import plots
    from oip_torch.analysis.calibration import Calibration, calibrate
    from oip_torch.analysis.contents import DataContents, LayerContents, NetworkContents
    from oip_torch.analysis.legibility import Readers
    from oip_torch.analysis.matching import LayerMatch, Match
    from oip_torch.analysis.noise_control import NoiseControl, noise_control
    from oip_torch.analysis.quality import Quality, assess
    from oip_torch.analysis.responses import respond
    from oip_torch.atlas.atlas import Atlas, open_atlas
    from oip_torch.atlas.making import make_atlas
    from oip_torch.atlas.matching import match
    from oip_torch.base.errors import CaptureError, ConversionError, InputError, OipError, VerificationError
    from oip_torch.base.image_files import read_images
    from oip_torch.comparison.comparison import Comparison, compare
    from oip_torch.gallery.page import Gallery
    from oip_torch.keras.convert import convert
    from oip_torch.keras.importing import import_onnx
    from oip_torch.network.capture import FeatureMaps, capture
    from oip_torch.network.domain import Domain
    from oip_torch.network.load import load
    from oip_torch.network.model import FeatureModel
    from oip_torch.network.onnx_file import Layer, Network
    from oip_torch.network.receptive_field import ReceptiveField, receptive_field
    from oip_torch.network.wrap import wrap
    from oip_torch.optim import objectives
    from oip_torch.optim.colors import Decorrelated
    from oip_torch.optim.concerns import Fallback, Screening, Snapshots, StopSettings
    from oip_torch.optim.constraint import Ball, Range, Standardized
    from oip_torch.optim.image import Blurred, Fourier, Pen, Phases, Pixels
    from oip_torch.optim.optimizer import Adam
    from oip_torch.optim.schedule import Criterion, Schedule
    from oip_torch.optim.settings import AscentSettings
    from oip_torch.optim.starts import StartSettings, start_images
    from oip_torch.optim.views import Views
    from oip_torch.plain.export import export_torch
    from oip_torch.results.oips import Oip, Oips
    from oip_torch.results.provenance import Provenance
    from oip_torch.results.responses import Responses
    from oip_torch.search.dead import DeadMaps, certify_dead
    from oip_torch.search.search import ascend
    from oip_torch.search.step import Step

_MODULES = {"objectives": "optim.objectives", "plots": "plots"}
_HOMES = {
    "Adam": "optim.optimizer",
    "AscentSettings": "optim.settings",
    "Atlas": "atlas.atlas",
    "Ball": "optim.constraint",
    "Blurred": "optim.image",
    "Calibration": "analysis.calibration",
    "CaptureError": "base.errors",
    "Comparison": "comparison.comparison",
    "ConversionError": "base.errors",
    "Criterion": "optim.schedule",
    "Decorrelated": "optim.colors",
    "DataContents": "analysis.contents",
    "DeadMaps": "search.dead",
    "Domain": "network.domain",
    "Fallback": "optim.concerns",
    "FeatureMaps": "network.capture",
    "FeatureModel": "network.model",
    "Fourier": "optim.image",
    "Gallery": "gallery.page",
    "InputError": "base.errors",
    "Layer": "network.onnx_file",
    "LayerContents": "analysis.contents",
    "LayerMatch": "analysis.matching",
    "Match": "analysis.matching",
    "Network": "network.onnx_file",
    "NetworkContents": "analysis.contents",
    "NoiseControl": "analysis.noise_control",
    "Oip": "results.oips",
    "OipError": "base.errors",
    "Oips": "results.oips",
    "Pen": "optim.image",
    "Phases": "optim.image",
    "Pixels": "optim.image",
    "Provenance": "results.provenance",
    "Quality": "analysis.quality",
    "Range": "optim.constraint",
    "Readers": "analysis.legibility",
    "ReceptiveField": "network.receptive_field",
    "Responses": "results.responses",
    "Schedule": "optim.schedule",
    "Screening": "optim.concerns",
    "Snapshots": "optim.concerns",
    "Standardized": "optim.constraint",
    "StartSettings": "optim.starts",
    "Step": "search.step",
    "StopSettings": "optim.concerns",
    "VerificationError": "base.errors",
    "Views": "optim.views",
    "ascend": "search.search",
    "assess": "analysis.quality",
    "calibrate": "analysis.calibration",
    "capture": "network.capture",
    "certify_dead": "search.dead",
    "compare": "comparison.comparison",
    "convert": "keras.convert",
    "export_torch": "plain.export",
    "import_onnx": "keras.importing",
    "load": "network.load",
    "make_atlas": "atlas.making",
    "match": "atlas.matching",
    "noise_control": "analysis.noise_control",
    "open_atlas": "atlas.atlas",
    "read_images": "base.image_files",
    "receptive_field": "network.receptive_field",
    "respond": "analysis.responses",
    "start_images": "optim.starts",
    "wrap": "network.wrap",
}

__all__ = [
    "Adam",
    "AscentSettings",
    "Atlas",
    "Ball",
    "Blurred",
    "Calibration",
    "CaptureError",
    "Comparison",
    "ConversionError",
    "Criterion",
    "DataContents",
    "DeadMaps",
    "Decorrelated",
    "Domain",
    "Fallback",
    "FeatureMaps",
    "FeatureModel",
    "Fourier",
    "Gallery",
    "InputError",
    "Layer",
    "LayerContents",
    "LayerMatch",
    "Match",
    "Network",
    "NetworkContents",
    "NoiseControl",
    "Oip",
    "OipError",
    "Oips",
    "Pen",
    "Phases",
    "Pixels",
    "Provenance",
    "Quality",
    "Range",
    "Readers",
    "ReceptiveField",
    "Responses",
    "Schedule",
    "Screening",
    "Snapshots",
    "Standardized",
    "StartSettings",
    "Step",
    "StopSettings",
    "VerificationError",
    "Views",
    "ascend",
    "assess",
    "calibrate",
    "capture",
    "certify_dead",
    "compare",
    "convert",
    "export_torch",
    "import_onnx",
    "load",
    "make_atlas",
    "match",
    "noise_control",
    "objectives",
    "open_atlas",
    "plots",
    "read_images",
    "receptive_field",
    "respond",
    "start_images",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"oip_torch.{_MODULES[name]}")
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
