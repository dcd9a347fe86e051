"""Where a projection starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from twinbert.errors import UsageError
from twinbert.model.config import TowerConfig, TwinConfig
from twinbert.model.projection import initialise_projection, pca_projection
from twinbert.model.twin import TwinBert

TOWER = TowerConfig(vocabulary=50, hidden=16, layers=1, heads=2, feed_forward=8, positions=12, projection=6)
TWIN = TwinConfig(query=TOWER, document=TOWER, query_max_tokens=8, document_max_tokens=12)


def vectors(count: int = 400) -> torch.Tensor:
    """Vectors of length 1 that use 6 of 16 directions, unevenly and off the origin, and hardly the others."""
    torch.manual_seed(31)
    spread = torch.tensor([1.0, 0.8, 0.5, 0.4, 0.3, 0.2] + [0.001] * 10)
    directions, _ = torch.linalg.qr(torch.randn(16, 16))
    return functional.normalize((torch.randn(count, 16) * spread + 0.5 * (spread > 0.1)) @ directions, dim=-1)


def test_cosines_are_kept() -> None:
    """Projected to the directions that vectors use, they have the cosines that they had; tanh bends them little."""
    vectors_NH = vectors()
    weight_DH = pca_projection(vectors_NH, 6)
    assert weight_DH.dtype == torch.float32
    cosines_NN = vectors_NH @ vectors_NH.T

    def cosines(projected_ND: torch.Tensor) -> torch.Tensor:
        unit_ND = functional.normalize(projected_ND, dim=-1)
        return unit_ND @ unit_ND.T

    torch.testing.assert_close(cosines(vectors_NH @ weight_DH.T), cosines_NN, rtol=0, atol=1e-3)
    assert (cosines(torch.tanh(vectors_NH @ weight_DH.T)) - cosines_NN).abs().mean() < 0.02


def test_all_dimensions_use_the_range_of_tanh() -> None:
    """What tanh is given has the root mean square asked for, and no dimension is left nearly unused."""
    vectors_NH = vectors()
    for rms in (0.2, 0.4):
        given_ND = vectors_NH @ pca_projection(vectors_NH, 6, rms=rms).T
        assert given_ND.square().mean().sqrt().item() == pytest.approx(rms, rel=1e-5)
        assert (given_ND.square().mean(0).sqrt() > rms / 4).all()


def test_both_towers_start_alike() -> None:
    """Query and document tower get one weight and no bias; the same seed gives the same weight."""
    for shared in (False, True):
        twin = TwinBert(replace(TWIN, shared=shared))
        initialise_projection(twin, vectors(), seed=3)
        for tower in (twin.query, twin.document):
            assert tower.projection is not None
            assert torch.equal(tower.projection.weight, pca_projection(vectors(), 6, seed=3))
            assert not tower.projection.bias.any()
    assert not torch.equal(pca_projection(vectors(), 6, seed=3), pca_projection(vectors(), 6, seed=4))


def test_vectors_that_do_not_do_are_refused() -> None:
    """Too few vectors, vectors that are too narrow or of another width, and towers without a projection."""
    with pytest.raises(UsageError, match="5 vectors of width 16 have no 6 principal directions"):
        pca_projection(vectors(5), 6)
    with pytest.raises(UsageError, match="400 vectors of width 16 have no 17 principal directions"):
        pca_projection(vectors(), 17)
    with pytest.raises(UsageError, match="a tower has no projection of vectors of width 12"):
        initialise_projection(TwinBert(TWIN), vectors()[:, :12])
    plain = replace(TOWER, projection=None)
    with pytest.raises(UsageError, match="a tower has no projection of vectors of width 16"):
        initialise_projection(TwinBert(replace(TWIN, query=plain, document=plain)), vectors())
