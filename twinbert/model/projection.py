"""Starting a projection from what it is to keep: the principal directions of the vectors that it will be given.

Shapes: N vectors, H hidden, D dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.model.twin import TwinBert

RMS = 0.4  # of what tanh is given to start with


def pca_projection(vectors_NH: Tensor, dimension: int, *, rms: float = RMS, seed: int = 0) -> Tensor:
    """Weight of a projection without bias that keeps inner products, and so cosines, as well as D dimensions can.

    Principal directions are taken about the origin, as cosines are, and not about the mean. They are rotated at random,
    so that all dimensions vary alike, and multiplied by one gain, so that tanh uses its range and bends little.

    Args:
        vectors_NH: a sample of what is projected, at least D.
        dimension: D.
        rms: root mean square of what tanh is given. Less wastes the 255 steps of a byte, more bends cosines.
        seed: of the rotation.

    Returns:
        float32 [D, H].

    Raises:
        UsageError: the vectors are too few or too narrow.
    """
    if dimension > min(vectors_NH.shape):
        count, hidden = vectors_NH.shape
        raise UsageError(f"{count} vectors of width {hidden} have no {dimension} principal directions; give more")
    vectors_NH = vectors_NH.double().cpu()
    _, directions_HH = torch.linalg.eigh(vectors_NH.T @ vectors_NH)  # the least important first
    generator = torch.Generator().manual_seed(seed)
    rotation_DD, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    weight_DH: Tensor = rotation_DD @ directions_HH[:, -dimension:].T
    gain = rms / (vectors_NH @ weight_DH.T).square().mean().sqrt()
    return (gain * weight_DH).float()


@torch.no_grad()
def initialise_projection(twin: TwinBert, vectors_NH: Tensor, *, rms: float = RMS, seed: int = 0) -> None:
    """Starts the projections of both towers alike from `pca_projection`.

    Args:
        twin: what to fill; its towers end in a projection.
        vectors_NH: what `Tower.pooled` gives for a sample of texts, of queries and of documents.
        rms: see `pca_projection`.
        seed: see `pca_projection`.

    Raises:
        UsageError: a tower has no projection of such vectors, or they are too few.
    """
    weight_DH = pca_projection(vectors_NH, twin.config.document.dimension, rms=rms, seed=seed)
    for tower in (twin.query, twin.document):
        if tower.projection is None or tower.projection.weight.shape != weight_DH.shape:
            raise UsageError(f"a tower has no projection of vectors of width {vectors_NH.shape[1]}")
        tower.projection.weight.copy_(weight_DH)
        nn.init.zeros_(tower.projection.bias)
