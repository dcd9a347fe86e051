"""Embeddings → stored rows → embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from store.encoding import Codec, Floats, codec
from store.errors import VectorsError

D = 5
FLOAT16_MAX = 65504.0
# What arithmetic in float32 adds to the step that an encoding states.
ROUNDING = 2.0**-22
# Rows whose largest magnitude is below this have a subnormal scale.
TINY = 127 * float(np.finfo(np.float32).smallest_normal)
ALL = [("float32", False), ("float16", False), ("uint8", True), ("uint8", False)]


def vectors(largest: float) -> st.SearchStrategy[Floats]:
    """Zero to four embeddings of any finite values up to `largest`."""
    bound = float(np.float32(largest))
    values = st.floats(-bound, bound, width=32)
    return arrays(np.float32, st.tuples(st.integers(0, 4), st.just(D)), elements=values)


def round_trip(rows: Codec, vectors_ND: Floats) -> tuple[npt.NDArray[np.float64], Any]:
    """The absolute error of each value after storing and reading, [N, D], and the scales."""
    stored_ND, scales_N = rows.encode(vectors_ND)
    assert stored_ND.dtype == rows.dtype
    assert stored_ND.shape == vectors_ND.shape
    assert stored_ND.nbytes == rows.row_bytes * len(vectors_ND)
    assert (scales_N is not None) == rows.has_scales
    back_ND = rows.decode(stored_ND, scales_N)
    assert back_ND.dtype == np.float32
    return np.abs(back_ND.astype(np.float64) - vectors_ND.astype(np.float64)), scales_N


def scaled_step(largest_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The error that rows with these largest magnitudes may have, [N]."""
    return np.where(largest_N < TINY, largest_N, largest_N / 127 * (0.5 + 127 * ROUNDING))


@settings(max_examples=100, deadline=None)
@given(vectors(float(np.finfo(np.float32).max)))
def test_float32_is_exact(vectors_ND: Floats) -> None:
    """Float32 gives back the same bits."""
    rows = codec("float32", D, fixed_step=False)
    stored, _ = rows.encode(vectors_ND)
    assert rows.decode(stored).tobytes() == vectors_ND.tobytes()


@settings(max_examples=100, deadline=None)
@given(vectors(FLOAT16_MAX))
def test_float16_stays_within_half_a_unit(vectors_ND: Floats) -> None:
    """Float16's error is at most 2^-11 of the value, and 2^-25 near zero."""
    error, _ = round_trip(codec("float16", D, fixed_step=False), vectors_ND)
    assert (error <= np.maximum(np.abs(vectors_ND.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


@settings(max_examples=100, deadline=None)
@given(vectors(1))
def test_fixed_uint8_stays_within_half_its_step(vectors_ND: Floats) -> None:
    """The fixed step's error is at most 1/255 anywhere in [-1, 1]."""
    error, _ = round_trip(codec("uint8", D, fixed_step=True), vectors_ND)
    assert (error <= 1 / 255 + ROUNDING).all()


@settings(max_examples=300, deadline=None)
@given(vectors(float(np.finfo(np.float32).max)))
def test_scaled_uint8_stays_within_half_its_scale(vectors_ND: Floats) -> None:
    """A row's scale is its largest magnitude over 127, and its error at most half of that, for any finite values."""
    error, scales_N = round_trip(codec("uint8", D, fixed_step=False), vectors_ND)
    largest_N = np.abs(vectors_ND.astype(np.float64)).max(axis=1, initial=0)
    assert (error <= scaled_step(largest_N)[:, None]).all()
    np.testing.assert_allclose(scales_N, np.where(largest_N < TINY, 0, largest_N / 127), rtol=2.0**-22)


@pytest.mark.parametrize(
    "largest", [0.0, 1e-45, 1.4e-43, 2.7e-43, 1e-38, 1.5e-36, 1e-3, 1.0, 127.0, 1e38, float(np.finfo(np.float32).max)]
)
def test_scaled_uint8_at_the_ends_of_float32(largest: float) -> None:
    """From zero over subnormal numbers to the largest float32, a scaled row stays within its step and finite."""
    value = np.float32(largest)
    vectors_ND = np.array([[value, -value, value / 2, -value / 3, 0]], np.float32)
    error, _ = round_trip(codec("uint8", D, fixed_step=False), vectors_ND)
    assert float(error.max()) <= scaled_step(np.array(value, np.float64))


def test_every_float16_and_byte_reads_as_what_it_stands_for() -> None:
    """All 63,488 finite float16 numbers, subnormal ones and both zeros too, and all bytes at any scale, bit for bit."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves_ND = halves[np.isfinite(halves)].reshape(-1, 8)
    read_ND = codec("float16", 8, fixed_step=False).decode(halves_ND)
    np.testing.assert_array_equal(read_ND.view(np.uint32), halves_ND.astype(np.float32).view(np.uint32))
    bytes_ND, scales_N = np.tile(np.arange(256, dtype=np.uint8), (3, 1)), np.array([0.1, 3e-7, 0], np.float32)
    expected_ND = (bytes_ND.astype(np.float32) - 128) * scales_N[:, None]
    np.testing.assert_array_equal(codec("uint8", 256, fixed_step=False).decode(bytes_ND, scales_N), expected_ND)


def test_known_rows() -> None:
    """The stored bytes of both uint8 encodings are the ones that the format document states."""
    vectors_ND = np.array([[-1, -0.5, 0, 0.25, 1]], np.float32)
    fixed, _ = codec("uint8", D, fixed_step=True).encode(vectors_ND)
    scaled, scales = codec("uint8", D, fixed_step=False).encode(vectors_ND)
    assert fixed.tolist() == [[0, 64, 127, 159, 255]]
    assert scaled.tolist() == [[1, 64, 128, 160, 255]]
    assert scales is not None
    assert scales.tolist() == [np.float32(1) / np.float32(127)]


@pytest.mark.parametrize(("name", "fixed"), ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name: str, fixed: bool, value: float) -> None:
    """NaN and infinities are refused by every encoding."""
    vectors_ND = np.zeros((3, D), np.float32)
    vectors_ND[1, 2] = value
    with pytest.raises(VectorsError, match="not finite"):
        codec(name, D, fixed_step=fixed).encode(vectors_ND)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([("float16", False, FLOAT16_MAX), ("uint8", True, 1.0)]), st.integers(1, 1 << 23), st.booleans())
def test_what_is_out_of_range_is_refused(case: tuple[str, bool, float], beyond: int, negative: bool) -> None:
    """A value that float16 or the fixed step cannot hold is refused, from the next float32 above the largest on."""
    name, fixed, largest = case
    value = (np.float32(largest).view(np.uint32) + np.uint32(beyond)).view(np.float32)
    vectors_ND = np.zeros((2, D), np.float32)
    vectors_ND[1, 4] = -value if negative else value
    with pytest.raises(VectorsError, match=r"beyond float16|leaves"):
        codec(name, D, fixed_step=fixed).encode(vectors_ND)


@pytest.mark.parametrize(("name", "fixed"), ALL)
@pytest.mark.parametrize("shape", [(2, D + 1), (D,), (1, 1, D)])
def test_another_shape_is_refused(name: str, fixed: bool, shape: tuple[int, ...]) -> None:
    """Only [N, D] is stored; the message says what came."""
    with pytest.raises(VectorsError, match="have shape"):
        codec(name, D, fixed_step=fixed).encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("name", "fixed"), ALL)
def test_no_rows(name: str, fixed: bool) -> None:
    """No embeddings are no rows."""
    error, _ = round_trip(codec(name, D, fixed_step=fixed), np.zeros((0, D), np.float32))
    assert error.shape == (0, D)


def test_unknown_encoding() -> None:
    """An unknown encoding is refused; the message lists those that there are."""
    with pytest.raises(VectorsError, match="float32, float16, uint8"):
        codec("int4", D, fixed_step=False)
