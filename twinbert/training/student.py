"""The student: a TwinBERT that learns to score as its teacher does, from blocks of pairs, and how it is run afterwards.

Shapes: N pairs or texts, Q queries, M documents, D dimension.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinbert.bundle import Bundle
from twinbert.bundle import Tower as TowerName
from twinbert.errors import UsageError
from twinbert.export import export
from twinbert.importing import identity
from twinbert.model.checkpoint import open_twin
from twinbert.model.config import CrossingKind
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import Tokenizer, open_tokenizer_file
from twinbert.training import calibration
from twinbert.training.blocks import Blocks
from twinbert.training.data import Dataset, Split
from twinbert.training.devices import Precision, new_accelerator
from twinbert.training.distillation import Distillation, embed
from twinbert.training.embedding import chunks_on
from twinbert.training.initial import SAMPLE, StudentConfig, build
from twinbert.training.loop import Task, fit
from twinbert.training.metrics import evaluate
from twinbert.training.pairs import Pairs, part
from twinbert.training.readable import readable_pairs
from twinbert.training.report import Report, Silent
from twinbert.training.runs import Run
from twinbert.training.space import learn_space
from twinbert.training.teacher import WATCHED, digest_of

Floats = npt.NDArray[np.float32]

_EMBEDDED_AT_ONCE = 4096


class Student:
    """A TwinBERT with its tokenizers, in torch.

    Args:
        twin: the model.
        tokenizer: its tokenizer.json.
    """

    def __init__(self, twin: TwinBert, tokenizer: Path) -> None:
        self.twin, self.tokenizer = twin, tokenizer
        self.tokenizers: dict[TowerName, Tokenizer] = {
            "query": open_tokenizer_file(tokenizer, max_tokens=twin.config.query_max_tokens),
            "document": open_tokenizer_file(tokenizer, max_tokens=twin.config.document_max_tokens),
        }

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], tower: TowerName, *, precision: Precision = "float32") -> Floats:
        """Embeddings float32 [N, D]."""
        self.twin.eval()
        device = next(self.twin.parameters()).device
        module = self.twin.query if tower == "query" else self.twin.document
        parts = [np.empty((0, self.twin.config.document.dimension), np.float32)]
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            tokens = self.tokenizers[tower].encode(texts[start : start + _EMBEDDED_AT_ONCE])
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                embedded_ND = embed(module, chunks_on(device, tokens))
            parts.append(embedded_ND.float().cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def logits(
        self, pairs: Sequence[tuple[str, str]], kind: CrossingKind | None = None, *, precision: Precision = "float32"
    ) -> Floats:
        """Logits float32 [N] of (query, document) pairs by a crossing, by default the first; a text is encoded once."""
        queries = {query: number for number, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        documents = {text: number for number, text in enumerate(dict.fromkeys(text for _, text in pairs))}
        device = next(self.twin.parameters()).device
        queries_QD = torch.from_numpy(self.embed(list(queries), "query", precision=precision)).to(device)
        documents_MD = torch.from_numpy(self.embed(list(documents), "document", precision=precision)).to(device)
        task_N = torch.tensor([queries[query] for query, _ in pairs], device=device)
        document_N = torch.tensor([documents[text] for _, text in pairs], device=device)
        crossing = self.twin.crossing(kind or self.twin.config.crossings[0])
        logits_N: Floats = crossing.logits(queries_QD, documents_MD[document_N], task_N).float().cpu().numpy()
        return logits_N

    def score(self, pairs: Sequence[tuple[str, str]], kind: CrossingKind | None = None) -> Floats:
        """Probabilities, likewise."""
        return torch.sigmoid(torch.from_numpy(self.logits(pairs, kind))).numpy()


def load(path: Path) -> Student:
    """A student from its bundle, on a GPU where there is one.

    Raises:
        BundleError: there is no bundle, or it comes without model.safetensors.
    """
    bundle = Bundle.open(path)
    twin = open_twin(bundle).to("cuda" if torch.cuda.is_available() else "cpu")
    return Student(twin, bundle.file(bundle.tokenizer.file))


def train(
    config: StudentConfig,
    dataset: Dataset,
    pairs: Pairs,
    *,
    output: Path,
    seed: int,
    common: Path | None = None,
    report: Report | None = None,
) -> Student:
    """Trains a student, calibrates it on dev and exports its bundle.

    Args:
        config: the student.
        dataset: dev is measured after each epoch and calibrates; nothing else of it is used but unlabelled texts.
        pairs: what its share is distilled from, scored by the teacher where a loss needs it.
        output: folder: `distil` is the run, `bundle` is the result; one that is there is loaded.
        seed: of everything random, but for what has a seed of `config`.
        common: folder of what students share: `spaces` are runs of first stages, `vectors` those that they learn; by
            default `output`.
        report: what is told.

    Raises:
        UsageError: `output` holds another run, or the pairs lack scores.
    """
    report = report or Silent()
    if config.needs_teacher and np.isnan(pairs.teacher_P).any():
        raise UsageError("student: its losses need a teacher, and there are pairs that none has scored")
    accelerator = new_accelerator()
    main = accelerator.is_main_process
    pairs = part(pairs, config.share)
    own = seed if config.seed is None else config.seed
    described = {"student": _described(config), "seed": own}
    described |= {"pairs": pairs.digest(), "dev": digest_of(dataset.dev)}
    run = Run(output / "distil", described, writes=main)
    if not (output / "bundle").exists():
        # A first stage is one for all seeds of a student, and so are the weights that it starts from.
        drawn = own if config.space is None else seed
        torch.manual_seed(drawn)
        with accelerator.main_process_first():
            twin, tokenizer = build(config, output, pairs, drawn, writes=main)
        student = Student(twin.to(accelerator.device), tokenizer)
        pairs = _readable_pairs(student, pairs, report)
        if config.space is not None:
            learn_space(
                config,
                student,
                dataset,
                common or output,
                seed=seed,
                measure=lambda: _measure(student, dataset.dev),
                report=report,
                accelerator=accelerator,
            )
        _start_crossings(student, pairs)
        blocks = Blocks(
            pairs,
            student.tokenizers["query"].encode(pairs.queries),
            student.tokenizers["document"].encode(pairs.documents),
            documents=config.documents,
            group=config.group,
            together=config.together,
            seed=own,
        )
        task = Task(
            name=f"{output.name} distil",
            module=Distillation(twin, config.losses),
            batches=blocks.batches,
            collate=blocks.collate,
            validate=lambda: _measure(student, dataset.dev),
        )
        # By an accelerator of its own: that of the first stage keeps the state of its optimiser.
        fit(task, config.distil, run=run, seed=own, report=report)
        if main:
            _export(student, dataset.dev, output / "bundle", run, report)
            run.drop_checkpoint()
        accelerator.wait_for_everyone()
    return load(output / "bundle")


def _described(config: StudentConfig) -> dict[str, Any]:
    """What shapes a student, its checkpoints by what they are."""
    described = config.described()
    if config.new is None or config.tokenizer == "wordpiece":  # else nothing of it is in the student
        described["checkpoint"] = identity(config.checkpoint)
    if config.space is not None:
        described["space"] |= {"teacher": identity(config.space.teacher)}
    return described


def _readable_pairs(student: Student, pairs: Pairs, report: Report) -> Pairs:
    kept = readable_pairs(student.tokenizers["document"], pairs)
    if left := len(pairs) - len(kept):
        report.event("left_out", f"{left:,} pairs are left out: a text of theirs has no letter", pairs=left)
    return kept


def _start_crossings(student: Student, pairs: Pairs) -> None:
    """Starts every crossing at the scale and offset that fit its targets best: steps would be lost on reaching them."""
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLE)).astype(np.int64)
    logits_N = pairs.teacher_P[rows].astype(np.float64)
    targets_N = np.where(np.isnan(logits_N), pairs.grade_P[rows], 1 / (1 + np.exp(-logits_N)))
    texts = [(pairs.queries[pairs.query_P[row]], pairs.documents[pairs.document_P[row]]) for row in rows]
    for kind in student.twin.config.crossings:
        student.twin.crossing(kind).calibrate(calibration.fit(student.logits(texts, kind), targets_N))


def _measure(student: Student, dev: Split) -> dict[str, float]:
    """What is watched while training."""
    texts = dev.texts()
    measured: dict[str, float] = {}
    for kind in student.twin.config.crossings:
        report = evaluate(student.score(texts, kind), dev.pairs)
        measured |= {f"{kind} {name}": report[name] for name in WATCHED}
    return measured


def _export(student: Student, dev: Split, output: Path, run: Run, report: Report) -> None:
    texts = dev.texts()
    grades_N = np.array([pair.grade for pair in dev.pairs])
    fitted = {kind: calibration.fit(student.logits(texts, kind), grades_N) for kind in student.twin.config.crossings}
    for kind, one in fitted.items():
        report.event(
            "calibrated",
            f"{kind}: calibration error {one.fitted_error_before:.4f}, {one.fitted_error_after:.4f} calibrated",
            crossing=kind,
            **dataclasses.asdict(one),
        )
        run.log(crossing=kind, **dataclasses.asdict(one))
    export(
        student.twin,
        output,
        tokenizer=student.tokenizer,
        source={"name": output.parent.name, "run": hashlib.sha256(repr(run.configuration).encode()).hexdigest()},
        calibration=fitted,
    )
