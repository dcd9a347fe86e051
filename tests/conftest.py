"""Bundles that the whole suite uses: tiny, seeded, and made by the real export; and what tests leave behind."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
from torch import nn

from tests import bundles
from tests.bundles import save_tokenizer, tiny_tower
from tests.once import MakeOnce, made_once
from twinbert.bundle import TOWERS, Bundle
from twinbert.export import export
from twinbert.model.config import TwinConfig
from twinbert.model.twin import TwinBert
from twinbert.runtime import Runtime


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What servers and commands that run in this process do to logging ends with their test."""
    loggers = logging.getLogger(), logging.getLogger("twinbert")
    before = [(logger, logger.level, [*logger.handlers]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes by name what takes long; see `tests.once`."""
    base = tmp_path_factory.getbasetemp()
    return functools.partial(made_once, (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with padding and truncation built in."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def tiny_twin(tiny_tokenizer: Path) -> TwinBert:
    """What `tiny_bundle` was made from: a query tower that is the first layer of the document tower's two."""
    return bundles.tiny_twin(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_twin: TwinBert, tiny_tokenizer: Path, make_once: MakeOnce) -> Path:
    """A bundle with two different towers, weighted pooling, l2: D = 32, queries of 16 tokens, documents of 32."""
    return make_once("tiny", lambda path: export(tiny_twin, path, tokenizer=tiny_tokenizer, source={"name": "tiny"}))


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Runtime:
    """Both towers of `tiny_bundle`."""
    return Runtime(Bundle.open(tiny_bundle), towers=TOWERS)


@pytest.fixture(scope="session")
def other_bundle(tiny_tokenizer: Path, make_once: MakeOnce) -> Path:
    """A bundle of another fingerprint: shared towers, `cls` pooling, tanh projection and no l2; also D = 32."""
    vocabulary = tokenizers.Tokenizer.from_file(str(tiny_tokenizer)).get_vocab_size()
    tower = tiny_tower(vocabulary, layers=1, pooling="cls", projection=32)
    config = TwinConfig(query=tower, document=tower, shared=True, query_max_tokens=16, document_max_tokens=32)
    with torch.random.fork_rng():
        torch.manual_seed(6275)
        twin = TwinBert(config)
        # Attention has to move the words into [CLS], or all texts would be nearly one.
        for module in twin.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    return make_once("other", lambda path: export(twin, path, tokenizer=tiny_tokenizer, source={"name": "other"}))
