"""Every kind of model becomes a bundle that is it: tokenizers, poolings, projections, normalisations, crossings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from torch import nn

from twinbert.bundle import TOWERS, Bundle
from twinbert.errors import ExportError, UsageError
from twinbert.export import export
from twinbert.model.checkpoint import open_twin
from twinbert.model.config import Calibration, CrossingKind, ResidualConfig, ResidualStart, TowerConfig, TwinConfig
from twinbert.model.tower import TrigramEmbedding
from twinbert.model.twin import TwinBert
from twinbert.runtime import Runtime
from twinbert.samples import DOCUMENTS, QUERIES
from twinbert.tokenizer import TriLetter, save_triletter
from twinbert.tokenizer.triletter import Letters

CROSSINGS: list[tuple[tuple[CrossingKind, ...], ResidualStart]] = [
    (("cosine",), "cosine"),  # no residual, so its configuration is the default
    (("residual",), "plain"),
    (("residual", "cosine"), "cosine"),
    (("cosine", "residual"), "plain"),
]


# What serving does with a bundle, where there is no torch.
SERVED = f"""
import json, sys
sys.modules["torch"] = None
import numpy as np
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime
bundle = Bundle.open(sys.argv[1])
runtime = Runtime(bundle, towers=TOWERS)
found = {{tower: runtime.encode([{QUERIES[0]!r}], tower) for tower in TOWERS}}
for kind in bundle.crossings:
    assert 0 <= runtime.cross(found["query"], found["document"], np.zeros(1, np.int64), kind)[0] <= 1
print(json.dumps({{tower: vectors[0].tolist() for tower, vectors in found.items()}}))
"""


def cases() -> list[dict[str, Any]]:
    """Eight models in which every choice meets every choice of another kind, an orthogonal array; two share nothing."""
    array = []
    for number in range(8):
        a, b, c = number >> 2 & 1, number >> 1 & 1, number & 1
        crossings, start = CROSSINGS[2 * a + b]
        array.append(
            {
                "letters": (None, ("ascii", "unicode")[a])[c],
                "pooling": ("cls", "weighted")[a ^ c],
                "projection": (None, 8)[b ^ c],
                "normalisation": ("none", "l2")[a ^ b ^ c],
                "shared": number not in (1, 6),
                "crossings": crossings,
                "start": start,
            }
        )
    return array


def make_tokenizer(path: Path, letters: Letters | None, pooling: str, wordpiece: Path) -> int:
    """Writes the tokenizer of a case and returns its size."""
    if letters is None:
        path.write_bytes(wordpiece.read_bytes())
        return tokenizers.Tokenizer.from_file(str(path)).get_vocab_size()
    save_triletter(path, letters=letters, cls=pooling == "cls")
    return TriLetter.vocabulary


def make_twin(case: dict[str, Any], vocabulary: int) -> TwinBert:
    """A tiny model of a case, whose embeddings and scores differ from text to text."""
    tower = TowerConfig(
        vocabulary=vocabulary,
        hidden=16,
        layers=1,
        heads=2,
        feed_forward=16,
        positions=12,
        embedding="tokens" if case["letters"] is None else "trigrams",
        **{name: case[name] for name in ("pooling", "projection", "normalisation")},
    )
    config = TwinConfig(
        query=tower,
        document=tower,
        query_max_tokens=6,
        document_max_tokens=12,
        **{name: case[name] for name in ("shared", "crossings")},
        residual=ResidualConfig(start=case["start"]),
    )
    torch.manual_seed(51)
    twin = TwinBert(config).eval()
    for module in twin.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, TrigramEmbedding):
            nn.init.normal_(module.weight[1:].detach())
    return twin


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case.values())))
def test_every_kind_becomes_a_bundle_that_is_it(case: dict[str, Any], tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The exported graphs agree with torch, texts are the same in any company, the bundle opens as the model
    and, without torch, is served.
    """
    path = tmp_path / "tokenizer.json"
    twin = make_twin(case, make_tokenizer(path, case["letters"], str(case["pooling"]), tiny_tokenizer))
    bundle = export(twin, tmp_path / "bundle", tokenizer=path, source={"name": "case"})

    parity = bundle.quality["parity"]
    assert 0 <= parity["embeddings"] < 1e-4
    assert 0 <= parity["scores"] < 1e-4
    runtime = Runtime(bundle, towers=TOWERS)
    for tower in TOWERS:
        together_ND = runtime.encode([*QUERIES, *DOCUMENTS], tower)
        alone_ND = np.concatenate([runtime.encode([text], tower) for text in (*QUERIES, *DOCUMENTS)])
        np.testing.assert_allclose(together_ND, alone_ND, rtol=0, atol=2e-6)
        assert together_ND.std(axis=0).min() > 1e-3

    assert bundle.default_crossing == twin.config.crossings[0]
    assert set(bundle.crossings) == set(twin.config.crossings)
    assert (bundle.tokenizer.kind == "wordpiece") == (case["letters"] is None)
    opened = open_twin(Bundle.open(bundle.path))
    assert opened.config == twin.config
    assert all(map(torch.equal, opened.parameters(), twin.parameters()))
    done = subprocess.run([sys.executable, "-c", SERVED, str(bundle.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for tower, embedding_D in json.loads(done.stdout).items():
        np.testing.assert_allclose(runtime.encode([QUERIES[0]], tower)[0], embedding_D, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def both_heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwinBert, Path]:
    """A small tri-letter model with both heads, and its tokenizer."""
    path = tmp_path_factory.mktemp("both") / "tokenizer.json"
    save_triletter(path)
    case = {"letters": "ascii", "pooling": "weighted", "projection": 8, "normalisation": "none"}
    twin = make_twin(
        case | {"shared": True, "crossings": ("residual", "cosine"), "start": "cosine"}, TriLetter.vocabulary
    )
    return twin, path


def test_calibration_is_folded_into_the_graphs(both_heads: tuple[TwinBert, Path], tmp_path: Path) -> None:
    """A calibrated crossing serves σ(logit / temperature + bias), says so with its numbers, and opens as such."""
    twin, tokenizer = both_heads
    fitted = Calibration(temperature=1.6, bias=0.25)
    calibrated = export(twin, tmp_path / "c", tokenizer=tokenizer, source={}, calibration={"residual": fitted})
    told = json.loads((calibrated.path / "bundle.json").read_bytes())["crossings"]
    assert told["residual"]["calibrated"] is calibrated.calibrated is True
    assert told["residual"]["calibration"] == {"temperature": 1.6, "bias": 0.25}
    assert told["cosine"]["calibrated"] is False
    assert "calibration" not in told["cosine"]

    runtime = Runtime(calibrated, towers=TOWERS)
    queries_QD, documents_ND = runtime.encode(["red shoe", "lamp"]), runtime.encode(DOCUMENTS, "document")
    vectors = (queries_QD, documents_ND, np.arange(len(documents_ND)) % 2)
    with torch.no_grad():
        logits_N = twin.crossing("residual").logits(*map(torch.from_numpy, vectors))
        cosine_N = twin.crossing("cosine")(*map(torch.from_numpy, vectors))
    np.testing.assert_allclose(runtime.cross(*vectors), torch.sigmoid(logits_N / 1.6 + 0.25), atol=1e-6)
    np.testing.assert_allclose(runtime.cross(*vectors, crossing="cosine"), cosine_N, atol=1e-6)
    with torch.no_grad():
        again_N = open_twin(calibrated).crossing("residual").logits(*map(torch.from_numpy, vectors))
    np.testing.assert_allclose(again_N, logits_N / 1.6 + 0.25, atol=1e-5)


def test_what_does_not_go_together_is_refused(
    both_heads: tuple[TwinBert, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """A calibration of no crossing, a tokenizer of the other kind, one without [CLS], one for a smaller vocabulary."""
    twin, tokenizer = both_heads
    only_cosine = TwinBert(dataclasses.replace(twin.config, crossings=("cosine",)))
    with pytest.raises(UsageError, match="calibration: names residual; the model has cosine"):
        export(only_cosine, tmp_path / "b", tokenizer=tokenizer, source={}, calibration={"residual": Calibration()})
    with pytest.raises(ExportError, match="is of kind wordpiece; the towers embed trigrams"):
        export(twin, tmp_path / "b", tokenizer=tiny_tokenizer, source={})

    def changed(**changes: Any) -> TwinBert:
        tower = dataclasses.replace(twin.config.document, **changes)
        return TwinBert(dataclasses.replace(twin.config, query=tower, document=tower))

    with pytest.raises(ExportError, match=r"starts texts with no \[CLS\], whose state cls pooling takes"):
        export(changed(pooling="cls"), tmp_path / "b", tokenizer=tokenizer, source={})
    with pytest.raises(ExportError, match="has 49292 ids, a tower 100 word embeddings"):
        export(changed(vocabulary=100), tmp_path / "b", tokenizer=tokenizer, source={})
    assert list(tmp_path.iterdir()) == []
