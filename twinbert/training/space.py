"""The first stage of towers without pretrained weights: they learn the embedding space of a pretrained bi-encoder.

Shapes: N texts, H width of the bi-encoder's vectors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import accelerate
import numpy as np

from twinbert.bundle import describe_file
from twinbert.importing import identity
from twinbert.model.checkpoint import load_weights, save_weights
from twinbert.training.data import Dataset
from twinbert.training.devices import precision_of
from twinbert.training.embedding import Floats, Lessons, SpaceLearner, bi_encoder_vectors, digest_of_texts, map_from
from twinbert.training.initial import SAMPLE, StudentConfig
from twinbert.training.loop import Task, fit
from twinbert.training.readable import readable
from twinbert.training.report import Report
from twinbert.training.runs import Run, locked
from twinbert.training.texts import TextFile

if TYPE_CHECKING:
    from twinbert.training.student import Student


def learn_space(
    config: StudentConfig,
    student: Student,
    dataset: Dataset,
    common: Path,
    *,
    seed: int,
    measure: Callable[[], Mapping[str, float]],
    report: Report,
    accelerator: accelerate.Accelerator,
) -> None:
    """Stage one: the document tower learns from every text, and the query tower starts as it.

    Students of which no more differs than what comes afterwards share it.

    Args:
        config: the student's.
        student: whose towers learn, in place.
        dataset: its texts are learned from.
        common: folder of what students share: `spaces` are runs of this, `vectors` those that they learn.
        seed: of everything random.
        measure: measures the student after an epoch.
        report: what is told.
        accelerator: devices.

    Raises:
        UsageError: the bi-encoder cannot be used, or a run there was left damaged.
    """
    assert config.space is not None
    twin, tokenizer = student.twin, student.tokenizers["document"]

    def every_text() -> Iterator[str]:
        assert config.space is not None
        return dataset.texts(spans=config.space.spans, seed=seed)

    described = {
        "tower": dataclasses.asdict(twin.config.document),
        "tokenizer": describe_file(student.tokenizer)["sha256"],
        "max_tokens": twin.config.document_max_tokens,
        "space": dataclasses.asdict(config.space) | {"teacher": identity(config.space.teacher)},
        "together": config.together,
        "seed": seed,
        "texts": digest_of_texts(every_text()),
    }
    if config.shared:  # then the tower is the first that was drawn, where a document tower of its own is the second
        described["shared"] = True
    if config.new is None:
        described["start"] = [identity(config.checkpoint), config.layers, config.projection_start]
    main = accelerator.is_main_process
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    run = Run(common / "spaces" / name, described, writes=main)
    done = run.path / "tower.safetensors"
    with locked(run.path, report, writes=main):
        accelerator.wait_for_everyone()  # or some would look for the tower before another process has made it
        if not done.exists():
            texts_path = run.path / "texts"
            with locked(common / "vectors", report, writes=main), accelerator.main_process_first():
                texts = TextFile.write(texts_path, readable(tokenizer, every_text())) if main else TextFile(texts_path)
                if left := sum(1 for _ in every_text()) - len(texts):
                    report.event("left_out", f"{left:,} texts are left out: they have no letter", texts=left)
                vectors_NH = bi_encoder_vectors(
                    config.space.teacher,
                    texts,
                    common / "vectors",
                    report,
                    precision=precision_of(accelerator),
                    writes=main,
                )
            _fit(
                config,
                student,
                texts=texts,
                vectors_NH=vectors_NH,
                run=run,
                seed=seed,
                measure=measure,
                report=report,
                accelerator=accelerator,
            )
            if main:
                building = done.with_suffix(".building")
                save_weights(twin.document, building)
                building.rename(done)
                run.drop_checkpoint()
        accelerator.wait_for_everyone()
    load_weights(twin.document, done)
    twin.query.load_state_dict(twin.document.state_dict())


def _fit(
    config: StudentConfig,
    student: Student,
    *,
    texts: TextFile,
    vectors_NH: Floats,
    run: Run,
    seed: int,
    measure: Callable[[], Mapping[str, float]],
    report: Report,
    accelerator: accelerate.Accelerator,
) -> None:
    assert config.space is not None
    twin, tokenizer = student.twin, student.tokenizers["document"]
    sample = np.sort(np.random.default_rng(seed).permutation(len(texts))[:SAMPLE])
    back = map_from(vectors_NH[sample], twin.document.config.dimension, seed=seed)
    lessons = Lessons(texts, tokenizer, vectors_NH, batch=config.space.batch, together=config.together, seed=seed)

    def validate() -> Mapping[str, float]:
        twin.query.load_state_dict(twin.document.state_dict())
        return measure()

    task = Task(
        name=f"space {run.path.name}",
        module=SpaceLearner(twin.document, back, config.space.loss),
        batches=lessons.batches,
        collate=lessons.collate,
        validate=validate,
    )
    fit(task, config.space.schedule, run=run, seed=seed, report=report, accelerator=accelerator)
