"""Dataclasses of arrays as xarray Datasets, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import xarray as xr

from oip_torch.results.fields import Array, array, arrays_of, large_of, rows_of, variables_of


@dataclass(frozen=True, kw_only=True)
class Sample:
    title: str
    scores: Array = array("image", kind=np.float32)
    pictures: Array = array("image", "y", "x", stored="images", large=True)
    steps: Array = array("step")
    names: Array | None = array("image", kind=np.str_, default=None)


@pytest.fixture
def sample() -> Sample:
    return Sample(
        title="three",
        scores=np.array([1.5, 2.5, 0.25], np.float32),
        pictures=np.arange(12.0).reshape(3, 2, 2),
        steps=np.array([0, 4]),
        names=np.array(["a", "bc", "d"]),
    )


def dataset_of(sample: Sample) -> xr.Dataset:
    return xr.Dataset(variables_of(sample))


def test_what_is_written_is_read(sample: Sample) -> None:
    dataset = dataset_of(sample)
    assert set(dataset.variables) == {"scores", "images", "steps", "names"}
    assert dataset["images"].dims == ("image", "y", "x")
    assert large_of(Sample) == large_of(sample) == ["images"]
    found = arrays_of(Sample, dataset)
    assert found.keys() == {"scores", "pictures", "steps", "names"}
    for name, values in found.items():
        assert np.array_equal(values, getattr(sample, name)), name
        assert values.dtype == getattr(sample, name).dtype, name


def test_numbers_are_read_as_the_kind_of_their_field(sample: Sample) -> None:
    dataset = dataset_of(replace(sample, scores=np.array([1, 2, 3], np.int8)))
    assert arrays_of(Sample, dataset)["scores"].dtype == np.float32


def test_a_missing_array_is_an_error_unless_it_has_a_default(sample: Sample) -> None:
    without_names = dataset_of(replace(sample, names=None))
    assert "names" not in without_names.variables
    again = Sample(title="three", **arrays_of(Sample, without_names))
    assert again.names is None
    with pytest.raises(KeyError, match="scores"):
        arrays_of(Sample, dataset_of(sample).drop_vars("scores"))
    with pytest.raises(KeyError, match="images"):  # the name in the file
        arrays_of(Sample, dataset_of(sample).drop_vars("images"))


@pytest.mark.parametrize("change", [{"x": "y", "y": "x"}, {"image": "step", "step": "image"}])
def test_an_array_of_other_dimensions_is_an_error(sample: Sample, change: dict[str, str]) -> None:
    dataset = dataset_of(sample).rename(change)
    with pytest.raises(ValueError, match=r"(images|scores) with the dimensions \('"):
        arrays_of(Sample, dataset)


def test_arrays_of_older_files_are_found_by_their_old_names(sample: Sample) -> None:
    old = {"scores": "strengths", "names": "labels"}
    dataset = dataset_of(sample)
    earlier = dataset.rename(old)
    assert np.array_equal(arrays_of(Sample, earlier, old)["scores"], sample.scores)
    assert arrays_of(Sample, earlier, old)["names"].tolist() == ["a", "bc", "d"]
    assert "names" not in arrays_of(Sample, earlier.drop_vars("labels"), old)  # under neither name
    with pytest.raises(KeyError, match="strengths"):
        arrays_of(Sample, earlier.drop_vars("strengths"), old)
    both = dataset.assign(strengths=("image", np.zeros(3)))
    assert np.array_equal(arrays_of(Sample, both, old)["scores"], sample.scores)  # the new name goes first


def test_rows_are_those_of_every_array_with_that_first_dimension(sample: Sample) -> None:
    rows = rows_of(sample, "image", np.array([2, 0]))
    assert rows.keys() == {"scores", "pictures", "names"}
    some = replace(sample, **rows)
    assert some.scores.tolist() == [0.25, 1.5]
    assert np.array_equal(some.pictures, sample.pictures[[2, 0]])
    assert (some.title, some.steps.tolist()) == ("three", [0, 4])
    assert rows_of(replace(sample, names=None), "image", np.array([True, False, False])).keys() == {
        "scores",
        "pictures",
    }
    assert rows_of(sample, "step", np.array([1]))["steps"].tolist() == [4]
