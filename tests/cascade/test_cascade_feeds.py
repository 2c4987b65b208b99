"""Whatever comes, and whatever a graph takes, the graph sees the same normalised images."""

from __future__ import annotations

import numpy as np

from cascade.feeds import feeds
from cascade.manifest import Preprocess
from cascade.pixels import normalise, scale_and_shift
from tests.builders import MEAN, STD, random_inputs, random_pixels

RULE = Preprocess(size=8, mean=MEAN, std=STD)


def test_pixels_go_as_they_are_into_a_graph_that_takes_them() -> None:
    pixels = random_pixels(3)
    found = feeds(pixels, "pixels", "shift", RULE)
    assert list(found) == ["pixels"]
    assert found["pixels"] is pixels


def test_pixels_are_normalised_for_a_graph_that_takes_floats() -> None:
    pixels = random_pixels(3)
    found = feeds(pixels, "images", rule=RULE)
    assert list(found) == ["images"]
    assert np.array_equal(found["images"], normalise(pixels, RULE))


def test_pixels_without_a_rule_are_passed_on() -> None:
    pixels = random_pixels(3)
    assert feeds(pixels, "images")["images"] is pixels


def test_floats_go_as_they_are_into_a_graph_that_takes_them() -> None:
    rows = random_inputs(3)
    assert feeds(rows, "images", rule=RULE)["images"] is rows


def test_floats_are_what_is_added_to_a_graphs_pixels_of_zeros() -> None:
    rows = random_inputs(3)
    found = feeds(rows, "pixels", "shift", RULE)
    scale, _ = scale_and_shift(RULE)
    assert found["pixels"].dtype == np.uint8
    assert np.array_equal(found["pixels"].astype(np.float32) * scale + found["shift"], rows)
