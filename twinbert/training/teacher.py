"""The teacher: a cross-encoder that reads query and document together, fine-tuned on human grades.

Any Hugging Face encoder will do (BERT, MiniLM, MPNet …): its directory, with config.json, model.safetensors and
tokenizer.json, becomes a classifier of one logit, whose sigmoid is the grade that people would give.

Shapes: N pairs, B pairs of a batch, L tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import accelerate
import numpy as np
import numpy.typing as npt
import safetensors
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from store.files import sync_directory, sync_file
from twinbert.bundle import describe_file
from twinbert.errors import BundleError, UnsupportedError, UsageError
from twinbert.importing import PACKAGES, identity, installed
from twinbert.model.checkpoint import read_json
from twinbert.training.data import Split
from twinbert.training.devices import Precision, new_accelerator
from twinbert.training.loop import Task, fit, windows
from twinbert.training.losses import pairwise_logistic
from twinbert.training.metrics import evaluate
from twinbert.training.report import Report, Silent
from twinbert.training.runs import Run, locked
from twinbert.training.schedule import Schedule

Floats = npt.NDArray[np.float32]
TextPair = tuple[str, str]

WATCHED = ("auc2", "ndcg10", "calibration_error")
_SCORED_AT_ONCE = 4096  # pairs tokenised together; also the stretch within which they are sorted by length
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How a teacher is made.

    Raises:
        UsageError: a value is out of range, or no checkpoint is named.
    """

    checkpoint: str = "all-minilm-l6-v2"
    """A directory, or the name of a package that holds one; empty: it has to be given."""
    max_tokens: int = 40
    """Tokens of query and document together; longer pairs lose the document's end."""
    batch: int = 64
    """Pairs of a step."""
    pairwise: float = 0.0
    """Weight of the RankNet loss over every two pairs of a batch."""
    schedule: Schedule = field(default_factory=Schedule)
    """Steps and rates."""

    def __post_init__(self) -> None:
        if self.max_tokens < 5 or self.batch < 1 or self.pairwise < 0:
            raise UsageError("teacher: max_tokens must be at least 5, batch at least 1, pairwise at least 0")
        if not self.checkpoint:
            raise UsageError("teacher: this budget names no checkpoint; give the folder of one with --checkpoint")


class Teacher:
    """A cross-encoder and its tokenizer.

    Args:
        model: a transformers model for sequence classification with one logit.
        tokenizer: its tokenizer.
        max_tokens: tokens of a pair.
        digest: what names it in caches: in one precision, equal digests give equal scores.
        batch: pairs scored together.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, digest: str, batch: int = 64) -> None:  # noqa: ANN401 - transformers' classes are chosen as it runs
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens, self.digest, self.batch = max_tokens, digest, batch
        self._reads = inspect.signature(model.forward).parameters.keys()  # MPNet has no segments

    def encode(self, pairs: Sequence[TextPair]) -> list[dict[str, list[int]]]:
        """Token ids, and segment ids where the model has segments, of pairs cut to `max_tokens`."""
        encoded = self.tokenizer(
            [query for query, _ in pairs],
            [document for _, document in pairs],
            truncation="longest_first",
            max_length=self.max_tokens,
            return_attention_mask=False,
        )
        columns = {name: values for name, values in encoded.items() if name in self._reads}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def pad(self, encodings: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """The model's input of encoded pairs, int64 [B, L] each."""
        lengths = [len(encoding["input_ids"]) for encoding in encodings]
        inputs = {}
        for name in encodings[0]:
            filler = self.tokenizer.pad_token_id if name == "input_ids" else 0
            values_BL = torch.full((len(encodings), max(lengths)), filler, dtype=torch.int64)
            for row, encoding in enumerate(encodings):
                values_BL[row, : lengths[row]] = torch.tensor(encoding[name])
            inputs[name] = values_BL
        inputs["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        return inputs

    @torch.inference_mode()
    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """Logits of (query, document) pairs, float32 [N]; their sigmoid is the expected grade.

        Args:
            pairs: of them.
            precision: bf16 is a hundredth off, near enough for a student's targets.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        logits_N = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), _SCORED_AT_ONCE):
            encodings = self.encode(pairs[start : start + _SCORED_AT_ONCE])
            lengths = [len(encoding["input_ids"]) for encoding in encodings]
            for rows in windows(range(len(encodings)), lengths, self.batch, window=_SCORED_AT_ONCE):
                inputs = {name: tensor.to(device) for name, tensor in self.pad([encodings[r] for r in rows]).items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits_B = self.model(**inputs).logits.squeeze(-1)
                logits_N[np.array(rows) + start] = logits_B.float().cpu().numpy()
        return logits_N

    def save(self, path: Path) -> Self:
        """Writes the directory that `load` reads, in one step."""
        building = path.with_name(f".{path.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        with _quiet():
            self.model.save_pretrained(building)
        self.tokenizer.save_pretrained(building)
        for file in building.iterdir():
            sync_file(file)
        building.rename(path)
        sync_directory(path.parent)
        return self


def load(path: Path, *, max_tokens: int = 40, batch: int = 64) -> Teacher:
    """A trained teacher, on a GPU where there is one.

    Raises:
        UsageError: `path` holds none.
    """
    architectures = read_json(locate(str(path)) / "config.json", dict).get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise UsageError(f"{path}: is no trained teacher; make one with `twinbert train teacher`")
    teacher = open_checkpoint(path, max_tokens=max_tokens, batch=batch, trained=True)
    teacher.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return teacher


def train(
    config: TeacherConfig, train_split: Split, dev: Split, *, output: Path, seed: int, report: Report | None = None
) -> Teacher:
    """Fine-tunes a checkpoint on grades: binary cross-entropy with the grade as a soft target.

    Args:
        config: how.
        train_split: what is learned.
        dev: what is measured after each epoch.
        output: folder of the run; the teacher is its `model`. One that is there is loaded.
        seed: of everything random.
        report: what is told.

    Raises:
        UsageError: the checkpoint cannot be used, or `output` holds another run.
    """
    report = report or Silent()
    accelerator = new_accelerator()
    source = locate(config.checkpoint)
    run = Run(
        output,
        {"teacher": _described(config, source), "data": digest_of(train_split, dev), "seed": seed},
        writes=accelerator.is_main_process,
    )
    path = output / "model"
    with locked(output, report, writes=accelerator.is_main_process):
        accelerator.wait_for_everyone()  # or some would look for the model before another process has made it
        if not path.exists():
            _fit(config, source, train_split, dev, run=run, seed=seed, report=report, accelerator=accelerator)
        accelerator.wait_for_everyone()
    return load(path, max_tokens=config.max_tokens, batch=config.batch)


def _fit(
    config: TeacherConfig,
    source: Path,
    train_split: Split,
    dev: Split,
    *,
    run: Run,
    seed: int,
    report: Report,
    accelerator: accelerate.Accelerator,
) -> None:
    torch.manual_seed(seed)  # of the new head
    teacher = open_checkpoint(source, max_tokens=config.max_tokens, batch=config.batch)
    data = _Grades(teacher, train_split, config.batch, seed)
    dev_pairs = dev.texts()
    task = Task(
        name="teacher",
        module=_Classifier(teacher.model, config.pairwise),
        batches=data.batches,
        collate=data.collate,
        validate=lambda: watch(teacher.score(dev_pairs), dev),
    )
    fit(task, config.schedule, run=run, seed=seed, report=report, accelerator=accelerator)
    if accelerator.is_main_process:
        teacher.save(run.path / "model")
        run.drop_checkpoint()


def locate(checkpoint: str) -> Path:
    """The directory of a checkpoint named by path or package.

    Raises:
        UsageError: there is none, or it lacks a file.
    """
    path = installed(PACKAGES[checkpoint]) if checkpoint in PACKAGES else Path(checkpoint)
    if not path.is_dir():
        raise UsageError(f"{checkpoint}: is no directory, and no known name; known is {', '.join(PACKAGES)}")
    for name in _NEEDED:
        if not (path / name).is_file():
            raise UsageError(f"{path / name}: is missing; a checkpoint needs {', '.join(_NEEDED)}")
    return path


def watch(logits_N: Floats, dev: Split) -> dict[str, float]:
    """What is measured on dev after an epoch."""
    probabilities = torch.from_numpy(logits_N).sigmoid()
    grades = torch.tensor([pair.grade for pair in dev.pairs], dtype=torch.float32)
    report = evaluate(probabilities.numpy(), dev.pairs)
    loss = functional.binary_cross_entropy_with_logits(torch.from_numpy(logits_N), grades)
    return {"loss": loss.item()} | {name: report[name] for name in WATCHED}


def digest_of(*splits: Split) -> str:
    """sha256 of the pairs of splits: a run's configuration names its data by it."""
    digest = hashlib.sha256()
    for split in splits:
        for pair in split.pairs:
            digest.update(f"{pair.query}\0{pair.document}\0{pair.grade!r}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


class _Classifier(nn.Module):
    def __init__(self, model: nn.Module, pairwise: float) -> None:
        super().__init__()
        self.model, self._pairwise = model, pairwise

    def forward(self, inputs: Mapping[str, Tensor], grades_B: Tensor) -> dict[str, Tensor]:
        logits_B = self.model(**inputs).logits.squeeze(-1).float()
        loss = functional.binary_cross_entropy_with_logits(logits_B, grades_B)
        if not self._pairwise:
            return {"loss": loss}
        pairwise = pairwise_logistic(logits_B, grades_B)
        return {"loss": loss + self._pairwise * pairwise, "cross_entropy": loss, "pairwise": pairwise}


class _Grades:
    """The train split as batches of pairs of like length."""

    def __init__(self, teacher: Teacher, split: Split, batch: int, seed: int) -> None:
        self._teacher, self._batch, self._seed = teacher, batch, seed
        self._grades_N = torch.tensor([pair.grade for pair in split.pairs], dtype=torch.float32)
        self._encodings = teacher.encode(split.texts())
        self._lengths = [len(encoding["input_ids"]) for encoding in self._encodings]

    def batches(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng((self._seed, epoch))
        batches = windows(generator.permutation(len(self._encodings)).tolist(), self._lengths, self._batch)
        return [batches[at] for at in generator.permutation(len(batches))]

    def collate(self, rows: list[int]) -> dict[str, Any]:
        inputs = self._teacher.pad([self._encodings[row] for row in rows])
        return {"inputs": inputs, "grades_B": self._grades_N[rows]}


def open_checkpoint(path: Path, *, max_tokens: int, batch: int = 64, trained: bool = False) -> Teacher:
    """A checkpoint as a cross-encoder; a head that it lacks is new, from torch's random numbers.

    Args:
        path: its directory.
        max_tokens: tokens of a pair.
        batch: pairs scored together.
        trained: whether it has to have its head.

    Raises:
        UsageError: it lacks a file, or reads fewer tokens.
        BundleError: its weights are not those of its configuration.
        UnsupportedError: it is of an architecture that cannot be one, or its tokenizer cannot pad.
    """
    locate(str(path))
    try:
        with _quiet():
            model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=1,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which is told below, in one line
                dtype=torch.float32,
                local_files_only=True,
                attn_implementation="eager",  # pairs are too short for fused attention to pay, in bf16 on a CPU least
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UnsupportedError(f"{path}: transformers makes no cross-encoder of it ({error})") from error
    _check_weights(path, model.base_model_prefix, found, trained=trained)
    if tokenizer.pad_token_id is None:
        raise UnsupportedError(f"{path}: its tokenizer has no padding token; name one in tokenizer_config.json")
    positions = getattr(model.config, "max_position_embeddings", max_tokens)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(table, "padding_idx", None)) is not None:  # RoBERTa and MPNet count from behind it
        positions -= padding + 1
    if max_tokens > positions:
        raise UsageError(f"{path}: reads {positions} tokens, max_tokens is {max_tokens}; lower it")
    tokens = describe_file(path / "tokenizer.json")["sha256"]
    named = f"{describe_file(path / 'model.safetensors')['sha256']} {tokens} {max_tokens}"
    digest = hashlib.sha256(named.encode()).hexdigest()
    return Teacher(model, tokenizer, max_tokens=max_tokens, digest=digest, batch=batch)


def _check_weights(path: Path, encoder: str, found: Mapping[str, Any], *, trained: bool) -> None:
    """Refuses weights that leave more to chance than a new head."""
    weights = path / "model.safetensors"
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise BundleError(f"{weights}: {name} has shape {list(there)}, the configuration says {list(wanted)}")
    for name in sorted(found["missing_keys"]):
        # A pooler belongs to the head: encoders are published without one.
        if trained or (name.startswith(f"{encoder}.") and not name.startswith(f"{encoder}.pooler.")):
            raise BundleError(f"{weights}: lacks {name}; its configuration is of another model")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its warning that a new head has new weights, which is what is wanted."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # theirs


def _described(config: TeacherConfig, source: Path) -> dict[str, Any]:
    weights = describe_file(source / "model.safetensors")["sha256"]
    return dataclasses.asdict(config) | {"checkpoint": identity(config.checkpoint), "weights": weights}
