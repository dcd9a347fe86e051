"""How embeddings become stored rows and back. A codec is exact about its error: see each class.

Shapes: N rows, D dimension. Rows are row-major; scales are one float32 a row where the codec has them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from store.errors import VectorsError

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[Any]

ENCODINGS = ("float32", "float16", "uint8")

# round((v + 1) / STEP) is the step of the published TwinBERT code for towers that end in tanh.
FIXED_STEP = np.float32(2 / 255)
# A Python float: numpy would compare with a float16 in float16, where nothing is larger.
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
# Of 5 and 10 bits of exponent and mantissa to 8 and 23. Widening an int16 repeats its sign; it is to stand once.
_SHIFT, _SIGN_AND_REST, _BIASES = np.int32(23 - 10), np.int32(0x8FFFFFFF - (1 << 32)), np.float32(2.0 ** (127 - 15))
# 127 times this is finite in float32.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))


class Codec:
    """Float32, and the base of the others: stored as it is, no error.

    Args:
        dimension: D, the length of an embedding.
    """

    name: ClassVar[str] = "float32"
    dtype: ClassVar[np.dtype[Any]] = np.dtype("<f4")
    has_scales: ClassVar[bool] = False
    fixed_step: ClassVar[bool] = False

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.row_bytes = dimension * self.dtype.itemsize

    def encode(self, vectors_ND: Floats) -> tuple[Rows, Floats | None]:
        """Vectors [N, D] to rows [N, D] of `dtype` and scales [N] or None.

        Raises:
            VectorsError: a value is not finite, or outside what the encoding can hold.
        """
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != self.dimension:
            raise VectorsError(f"embeddings have shape {vectors_ND.shape}; the store holds [N, {self.dimension}]")
        if not np.isfinite(vectors_ND).all():
            raise VectorsError("an embedding has a value that is not finite: the model or its export is broken")
        return self._encode(np.ascontiguousarray(vectors_ND, dtype=np.float32))

    def decode(self, rows_ND: Rows, scales_N: Floats | None = None) -> Floats:
        """Rows [N, D] to float32 vectors [N, D]; may return `rows_ND` itself."""
        return self._decode(rows_ND, scales_N)

    def _encode(self, vectors_ND: Floats) -> tuple[Rows, Floats | None]:
        return vectors_ND, None

    def _decode(self, rows_ND: Rows, scales_N: Floats | None) -> Floats:
        return rows_ND


class Float16(Codec):
    """Half precision: relative error at most 2^-11, absolute at most 2^-25 near zero."""

    name = "float16"
    dtype = np.dtype("<f2")

    def _decode(self, rows_ND: Rows, scales_N: Floats | None) -> Floats:
        # `astype` goes number by number, which takes four times as long. Of a finite number this is the same: its bits
        # moved to their places in a float32, whose exponent is then too small by the difference of the biases.
        bits_ND = rows_ND.view(np.int16).astype(np.int32)
        bits_ND <<= _SHIFT
        bits_ND &= _SIGN_AND_REST
        vectors_ND = bits_ND.view(np.float32)
        vectors_ND *= _BIASES
        return vectors_ND

    def _encode(self, vectors_ND: Floats) -> tuple[Rows, Floats | None]:
        largest = float(np.abs(vectors_ND).max(initial=0))
        if largest > _LARGEST_FLOAT16:
            raise VectorsError(f"an embedding has the value {largest:g}, beyond float16; store these as float32")
        return vectors_ND.astype(self.dtype), None


class FixedUint8(Codec):
    """The paper's step 2/255 over [-1, 1]: absolute error at most 1/255 and float32's rounding."""

    name = "uint8"
    dtype = np.dtype("u1")
    fixed_step = True

    def _decode(self, rows_ND: Rows, scales_N: Floats | None) -> Floats:
        vectors_ND = rows_ND.astype(np.float32)
        vectors_ND *= FIXED_STEP
        vectors_ND -= np.float32(1)
        return vectors_ND

    def _encode(self, vectors_ND: Floats) -> tuple[Rows, Floats | None]:
        if np.abs(vectors_ND).max(initial=0) > 1:
            raise VectorsError("an embedding leaves [-1, 1], so its tower does not end in tanh as its bundle says")
        return np.rint((vectors_ND + 1) / FIXED_STEP).astype(np.uint8), None


class ScaledUint8(Codec):
    """One scale a row, the largest magnitude over 127: absolute error at most half the scale.

    A row whose scale would be subnormal (no value above 1.5e-36) is stored as zeros.
    """

    name = "uint8"
    dtype = np.dtype("u1")
    has_scales = True

    def _decode(self, rows_ND: Rows, scales_N: Floats | None) -> Floats:
        assert scales_N is not None
        # The highest bit turned, a byte is what it stood for less 128, as an int8.
        vectors_ND: Floats = (rows_ND ^ np.uint8(128)).view(np.int8) * scales_N[:, None]
        return vectors_ND

    def _encode(self, vectors_ND: Floats) -> tuple[Rows, Floats | None]:
        scales_N = np.minimum(np.abs(vectors_ND).max(axis=1, initial=0) / np.float32(127), _LARGEST_SCALE)
        scales_N[scales_N < np.finfo(np.float32).smallest_normal] = 0
        divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
        return (np.rint(vectors_ND / divisors_N[:, None]) + 128).astype(np.uint8), scales_N


def codec(name: str, dimension: int, *, fixed_step: bool) -> Codec:
    """The codec of an encoding name; `fixed_step` says that the tower ends in tanh, which only uint8 makes use of.

    Raises:
        VectorsError: no such encoding.
    """
    if name == "uint8":
        return FixedUint8(dimension) if fixed_step else ScaledUint8(dimension)
    for kind in (Codec, Float16):
        if kind.name == name:
            return kind(dimension)
    raise VectorsError(f"no encoding is called {name!r}; there are {', '.join(ENCODINGS)}")
