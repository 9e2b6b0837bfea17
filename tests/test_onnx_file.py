"""The description that travels in an ONNX file: what is written is read, and what was written earlier still is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import ROOT, in_format_1
from onnx import helper

import oip_torch
from oip_torch.network.onnx_file import read, write


def metadata(path: Path) -> dict[str, Any]:
    (entry,) = (entry for entry in onnx.load(path).metadata_props if entry.key == "oip_torch")
    return json.loads(entry.value)


def test_the_shipped_file_is_of_the_present_format(mnist_onnx: Path) -> None:
    data = metadata(mnist_onnx)
    assert data["format"] == 3
    assert data["verification"]["gradient"]["layer"] == "Conv2D_3"
    assert all(len(layer["fingerprint"]) == 4 for layer in data["layers"])
    assert not {"proof", "figures"} & {*data, *data["layers"][0]}


def test_a_file_of_the_first_format_is_read_as_before(mnist_onnx: Path, tmp_path: Path) -> None:
    """And written in the present one, byte for byte as if it had been made so."""
    proto = onnx.load(mnist_onnx)
    helper.set_model_props(proto, {"oip_torch": json.dumps(in_format_1(metadata(mnist_onnx)))})
    earlier, anew = tmp_path / "earlier.onnx", tmp_path / "anew.onnx"
    earlier.write_bytes(proto.SerializeToString())
    ours, theirs = read(mnist_onnx)[1], read(earlier)[1]
    assert dataclasses.replace(theirs, domain=ours.domain) == ours
    assert theirs.domain.is_like(ours.domain)
    assert theirs.domain.ends == ours.domain.ends
    oip_torch.load(earlier, device="cpu")  # the fingerprints fit
    write(onnx.load(earlier), ours, anew)
    assert anew.read_bytes() == mnist_onnx.read_bytes()


@pytest.mark.parametrize("name", ["smooth.onnx", "rgb.onnx"])
def test_files_that_were_written_in_the_first_format_load(name: str) -> None:
    path = ROOT / "tests" / "data" / name
    data = metadata(path)
    assert data["format"] == 1
    network = oip_torch.load(path, device="cpu").network
    assert network.verification == data["proof"]
    assert [list(layer.fingerprint) for layer in network.layers] == [layer["figures"] for layer in data["layers"]]
