"""What a model is trained on: devices, their precision and their order of sums."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import accelerate
import torch
from accelerate.state import is_initialized
from accelerate.utils import gather_object
from torch import Tensor

from twinbert.errors import UsageError

Precision = Literal["float32", "bf16"]

_MIXED = {"float32": "no", "bf16": "bf16"}  # in accelerate's words


def new_accelerator(precision: Precision | None = None) -> accelerate.Accelerator:
    """Devices as `accelerate launch` says, else one GPU or the CPU.

    Args:
        precision: of a process's first call, and so of all that it trains. None: what `accelerate launch` was told,
            else bf16 where the processor multiplies it. Its `no` counts as nothing: it says so unasked too.

    Raises:
        UsageError: it was told a precision that training has not.
    """
    # cuBLAS reads it once, before its first product, and repeats its sums to the bit only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The first process works alone, or waits for another command, for hours; the others wait for it.
    patience = accelerate.InitProcessGroupKwargs(timeout=timedelta(days=2))
    mixed = None if precision is None else _MIXED[precision]
    if mixed is None and not is_initialized():
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched not in _MIXED.values():
            raise UsageError(
                f"accelerate launch --mixed_precision {launched}: training is in float32 or bf16; leave the option "
                "out, or give --precision"
            )
        mixed = launched if launched != "no" else "bf16" if multiplies_bf16() else "no"
    return accelerate.Accelerator(mixed_precision=mixed, kwargs_handlers=[patience])


def gathered(accelerator: accelerate.Accelerator, value: Any) -> list[Any]:  # noqa: ANN401 - whatever can be pickled
    """What each process has, in the order of their numbers; every one of them has to ask."""
    found: list[Any] = gather_object([value]) if accelerator.num_processes > 1 else [value]
    return found


def precision_of(accelerator: accelerate.Accelerator) -> Precision:
    """What a process trains in, and so what its teachers score and its bi-encoders embed in."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "float32"


def cache_name(digest: str, precision: Precision) -> str:
    """What names a cache of what was computed in a precision: of bf16, which all once had, the digest says enough."""
    return digest if precision == "bf16" else f"{digest}-{precision}"


def multiplies_bf16() -> bool:
    """Whether the processor that trains has instructions for it; without them it is slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_heap() -> None:
    """Lets glibc keep what tensors free: each step asks for it again, and fresh pages cost a fifth of a step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)


@contextmanager
def deterministic() -> Iterator[None]:
    """Sums in one order, whatever the threads: the gradient of an indexed tensor is else added up as they come.

    A layer for which a GPU has no such form trains all the same, with a warning.
    """
    memory: Any = torch.utils.deterministic  # types do not tell that a module has a property
    mode, filled = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False  # it finds faults, and costs time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled


def to_device(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever is nested
    """Tensors, or nests of them, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: to_device(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(inner, device) for inner in value)
    return value
