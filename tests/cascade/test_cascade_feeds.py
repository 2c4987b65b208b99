"""Whatever comes, and whatever a graph takes, the graph sees the same normalised images."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.feeds import feeds
from cascade.files import Input
from cascade.manifest import Preprocess
from cascade.pixels import normalise, scale_and_shift
from tests.builders import MEAN, STD, random_inputs, random_pixels

RULE = Preprocess(size=8, mean=MEAN, std=STD)
SHAPE = (None, 3, 8, 8)
FLOATS = Input(name="images", shape=SHAPE)
PIXELS = Input(name="pixels", shape=SHAPE, dtype="uint8", shift="shift")
GRID = Input(name="pixels", shape=SHAPE, dtype="uint8")


@pytest.mark.parametrize("takes", [PIXELS, GRID])
def test_pixels_go_as_they_are_into_a_graph_that_takes_them(takes: Input) -> None:
    pixels = random_pixels(3)
    found = feeds(pixels, takes, RULE)
    assert list(found) == ["pixels"]
    assert found["pixels"] is pixels


def test_pixels_are_normalised_for_a_graph_that_takes_floats() -> None:
    pixels = random_pixels(3)
    found = feeds(pixels, FLOATS, RULE)
    assert list(found) == ["images"]
    assert np.array_equal(found["images"], normalise(pixels, RULE))


def test_images_without_a_rule_are_passed_on() -> None:
    pixels, rows = random_pixels(3), random_inputs(3)
    assert feeds(pixels, FLOATS)["images"] is pixels
    assert feeds(rows, GRID)["pixels"] is rows


def test_floats_go_as_they_are_into_a_graph_that_takes_them() -> None:
    rows = random_inputs(3)
    assert feeds(rows, FLOATS, RULE)["images"] is rows


def test_floats_are_what_is_added_to_a_graphs_pixels_of_zeros() -> None:
    rows = random_inputs(3)
    found = feeds(rows, PIXELS, RULE)
    scale, _ = scale_and_shift(RULE)
    assert found["pixels"].dtype == np.uint8
    assert np.array_equal(found["pixels"].astype(np.float32) * scale + found["shift"], rows)


def test_floats_go_back_to_pixels_for_a_graph_that_takes_pixels_alone() -> None:
    pixels = random_pixels(3)
    found = feeds(normalise(pixels, RULE), GRID, RULE)
    assert list(found) == ["pixels"]
    assert found["pixels"].dtype == np.uint8
    assert np.array_equal(found["pixels"], pixels)
