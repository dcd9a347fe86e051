"""The first of two stages for towers without pretrained weights: learn a pretrained bi-encoder's embedding space.

Every text that there is, labelled or not, becomes a lesson: its vector. Only then is the cross-encoder distilled, from
far fewer pairs.

Shapes: N texts, B texts of a batch, H width of the pretrained vectors, D of the tower's embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from store.files import sync_file
from twinbert.errors import UsageError
from twinbert.importing import Imported, identity, import_twin
from twinbert.model.projection import RMS, pca_projection
from twinbert.model.tower import Tower
from twinbert.tokenizer import TokenBatch, Tokenizer, open_tokenizer_file
from twinbert.training.blocks import chunks
from twinbert.training.devices import Precision, cache_name
from twinbert.training.distillation import embed
from twinbert.training.loop import windows
from twinbert.training.report import Report
from twinbert.training.schedule import Schedule
from twinbert.training.texts import TextFile

Floats = npt.NDArray[np.float32]
SpaceLoss = Literal["cosine", "mse"]

_ENCODED_AT_ONCE = 4096  # texts between two appends: what a kill loses


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """How a tower learns an embedding space.

    Raises:
        UsageError: a value is out of range.
    """

    teacher: str = "all-minilm-l6-v2"
    """The bi-encoder: a directory, or the name of a package that holds one."""
    loss: SpaceLoss = "cosine"
    """`cosine`: 1 − cos; `mse`: squared distance. Of the mapped embedding to the vector."""
    spans: int = 0
    """Runs of words that are taken from each document to learn from besides: a catalogue has far fewer queries."""
    batch: int = 256
    """Texts of a step."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=3, rate=5e-4))
    """Steps and rates."""

    def __post_init__(self) -> None:
        if self.loss not in get_args(SpaceLoss) or self.batch < 1 or self.spans < 0:
            raise UsageError(
                f"space: loss is {self.loss!r} of {' and '.join(get_args(SpaceLoss))}, batch {self.batch}, at least 1, "
                f"spans {self.spans}, at least 0"
            )


class SpaceLearner(nn.Module):
    """A tower and the linear map from its embeddings to the vectors, which is thrown away afterwards.

    Args:
        tower: what learns.
        back: the map, D to H.
        loss: what is minimised.
    """

    def __init__(self, tower: Tower, back: nn.Linear, loss: SpaceLoss) -> None:
        super().__init__()
        self.tower, self.back = tower, back
        self._loss = loss

    def forward(self, texts: Mapping[str, Any], vectors_BH: Tensor) -> dict[str, Tensor]:
        """The loss of a batch of texts against their vectors."""
        mapped_BH = self.back(embed(self.tower, texts)).float()
        if self._loss == "cosine":
            return {"loss": 1 - functional.cosine_similarity(mapped_BH, vectors_BH).mean()}
        return {"loss": functional.mse_loss(mapped_BH, vectors_BH)}


class Lessons:
    """Texts with their vectors, in batches of texts of like length.

    Args:
        texts: in any number.
        tokenizer: the tower's.
        vectors_NH: of the texts; may be mapped from a file.
        batch: texts of a step.
        together: texts that the tower reads at once.
        seed: of their order.
    """

    def __init__(
        self, texts: TextFile, tokenizer: Tokenizer, vectors_NH: Floats, *, batch: int, together: int, seed: int
    ) -> None:
        self._texts, self._tokenizer, self._vectors_NH = texts, tokenizer, vectors_NH
        self._batch, self._together, self._seed = batch, together, seed

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        batches = windows(generator.permutation(len(self._texts)), self._texts.sizes, self._batch, window=10)
        return [batches[at] for at in generator.permutation(len(batches))]

    def collate(self, rows: list[int]) -> dict[str, Any]:
        """A batch as the arguments of `SpaceLearner`."""
        vectors_BH = torch.from_numpy(np.ascontiguousarray(self._vectors_NH[rows], dtype=np.float32))
        tokens = self._tokenizer.encode([self._texts[row] for row in rows])
        return {"texts": chunks(tokens, range(len(rows)), self._together), "vectors_BH": vectors_BH}


def bi_encoder_vectors(
    teacher: str, texts: Sequence[str], directory: Path, report: Report, *, precision: Precision, writes: bool = True
) -> Floats:
    """The bi-encoder's vectors of texts, mapped from a file [N, H] that is made where it is not whole yet.

    Args:
        teacher: a directory, or the name of a package.
        texts: any number, read in order.
        directory: of such files, one for each teacher, sequence of texts and precision.
        report: what is told.
        precision: what they are computed in.
        writes: false: another process makes it, and has by now.

    Raises:
        UsageError: the teacher cannot be used.
    """
    imported = import_twin(teacher)
    name = hashlib.sha256(f"{identity(teacher)}{digest_of_texts(texts)}".encode()).hexdigest()
    path = directory / f"{cache_name(name[:32], precision)}.f32"
    width = imported.twin.config.document.dimension
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        _append_vectors(path, imported, texts, precision, report)
    return np.memmap(path, np.float32, "r").reshape(-1, width)


def digest_of_texts(texts: Iterable[str]) -> str:
    """sha256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


@torch.inference_mode()
def _append_vectors(path: Path, imported: Imported, texts: Sequence[str], precision: Precision, report: Report) -> None:
    tower, width = imported.twin.document, imported.twin.config.document.dimension
    reader = open_tokenizer_file(imported.tokenizer, max_tokens=imported.twin.config.document_max_tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower.to(device).eval()
    with path.open("ab") as file:
        done = file.tell() // (4 * width)
        if done < len(texts):  # a kill may have cut an append short, and other neighbours would be padded otherwise
            done -= done % _ENCODED_AT_ONCE
        file.truncate(done * 4 * width)
        for start in range(done, len(texts), _ENCODED_AT_ONCE):
            part = chunks_on(device, reader.encode(texts[start : start + _ENCODED_AT_ONCE]))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                vectors_BH = embed(tower, part)
            file.write(vectors_BH.cpu().numpy().tobytes())
            file.flush()
            report.progress("vectors", min(start + _ENCODED_AT_ONCE, len(texts)), len(texts), unit="texts")
    sync_file(path)


def chunks_on(device: torch.device, tokens: TokenBatch, *, together: int = 64) -> dict[str, Any]:
    """All texts as `embed` takes them, on a device."""
    texts = chunks(tokens, range(len(tokens)), together)
    return {
        "chunks": [(ids.to(device), mask.to(device)) for ids, mask in texts["chunks"]],
        "places": texts["places"].to(device),
    }


def map_from(vectors_NH: Floats, dimension: int, *, seed: int) -> nn.Linear:
    """A map that starts as the way back from what embeddings are to become.

    Where they are no wider than the vectors that is their principal directions, else the vectors whole, turned at
    random into the wider space.

    Args:
        vectors_NH: a sample.
        dimension: D.
        seed: of the turning.

    Raises:
        UsageError: there are fewer vectors than D, where D is at most H.
    """
    vectors = torch.from_numpy(np.array(vectors_NH, dtype=np.float32))
    width = vectors.shape[1]
    back = nn.Linear(dimension, width, bias=False)
    with torch.no_grad():
        if dimension <= width:
            # Rows are orthogonal and of one length, so the transpose over its square is the inverse.
            weight_DH = pca_projection(vectors, dimension, seed=seed)
            back.weight.copy_(weight_DH.T / weight_DH[0].square().sum())
        else:
            nn.init.orthogonal_(back.weight, generator=torch.Generator().manual_seed(seed))
            # So that embeddings, whose parts tanh bounds, vary as those of principal directions.
            back.weight.mul_((vectors @ back.weight).square().mean().sqrt() / RMS)
    return back
