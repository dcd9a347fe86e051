"""What is measured on: bundles of real and of untrained weights, stores, queries, and what peers need of the same.

Each is made when it is first asked for; what takes long and never changes is kept in the cache.

Shapes: n documents of a store, D dimension.
"""

from __future__ import annotations

import json
import random
import subprocess
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.corpora import publish, served_by
from bench.environments import CACHE
from bench.queries import described, lengths, phrases
from bench.serving import ROOT, NotMeasuredError, last_words
from bench.systems import textbook
from bench.systems.scorer import COMMAND
from bench.workloads import LISTS, Workload, uniform, zipf
from demo.corpus import write_corpus
from store.store import Store
from twinbert.bundle import Bundle
from twinbert.export import export
from twinbert.importing import PACKAGES, import_bundle
from twinbert.model.config import TowerConfig, TwinConfig
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import WordPiece
from twinbert.tokenizer.triletter import RESERVED, TRIGRAMS, save_triletter

CORPUS = 2000  # documents of the demo's
DIFFERENT_QUERIES, ZIPF_REQUESTS = 10_000, 20_000

# Of what int8 may cost in quality: an untrained tower has none to lose.
_NO_LIMITS = ("--max-score-largest", "1", "--max-score-mean", "1", "--min-cosine", "-1", "--min-overlap", "0")


class Material:
    """Makes things in a folder, once.

    Args:
        folder: a temporary one; goes with the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._texts = 0

    @cached_property
    def minilm(self) -> Path:
        """The bundle of all-MiniLM-L6-v2, which `make demo` also uses."""
        bundle = ROOT / ".demo" / "bundle"
        if not (bundle / "bundle.json").exists():
            bundle.parent.mkdir(exist_ok=True)
            import_bundle("all-minilm-l6-v2", bundle)
        return bundle

    def triletter(self, layers: int) -> Path:
        """The paper's shape, untrained: layers × 512 over tri-letters, 128 dimensions, residual and cosine crossing."""
        bundle = self.folder / f"triletter-{layers}"
        if not bundle.exists():
            tower = TowerConfig(
                vocabulary=RESERVED + TRIGRAMS,
                hidden=512,
                layers=layers,
                heads=8,
                feed_forward=512,
                positions=24,
                embedding="trigrams",
                projection=128,
            )
            config = TwinConfig(
                query=tower,
                document=tower,
                query_max_tokens=12,
                document_max_tokens=24,
                crossings=("residual", "cosine"),
            )
            torch.manual_seed(layers)
            tokenizer = self.folder / "triletter.json"
            save_triletter(tokenizer)
            export(TwinBert(config).eval(), bundle, tokenizer=tokenizer, source={"name": f"untrained-{layers}"})
        return bundle

    def int8(self, bundle: Path) -> Path:
        """The same with an int8 query tower beside the float32 one.

        Raises:
            NotMeasuredError: this version makes none, or its quality is refused.
        """
        quantized = self.folder / f"{bundle.name}-int8"
        if not quantized.exists():
            limits = () if bundle == self.minilm else _NO_LIMITS
            _twinbert("bundle", "quantize", str(bundle), "-o", str(quantized), *limits)
        return quantized

    @cached_property
    def texts(self) -> dict[str, str]:
        """Documents of the demo's corpus, the API of Python: id → text."""
        lines = random.Random(0).sample(self._corpus, CORPUS)
        (self.folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
        return {entry["id"]: entry["text"] for entry in map(json.loads, lines)}

    @cached_property
    def _corpus(self) -> list[str]:
        path = self.folder / "corpus-whole.jsonl"
        write_corpus(path)
        return path.read_text().splitlines()

    @cached_property
    def texts_file(self) -> Path:
        """`texts`, as JSON."""
        path = self.folder / "texts.json"
        path.write_text(json.dumps(self.texts))
        return path

    @cached_property
    def minilm_store(self) -> Path:
        """The corpus, encoded by MiniLM."""
        path, ids = self.folder / "minilm", [*self.texts]
        documents = ("--documents", str(self.folder / "corpus.jsonl"))
        _twinbert("refresh", "--bundle", str(self.minilm), "--store", str(path), *documents)
        store = Store(path)
        generation = store.open(store.current())
        embeddings_nD = generation.read(generation.locate(ids))
        generation.close()
        np.savez(self.folder / "documents.npz", ids=np.array(ids), embeddings=embeddings_nD)
        return path

    @property
    def documents(self) -> Path:
        """Ids and MiniLM's embeddings of the corpus, for `bench.systems.documents`."""
        assert self.minilm_store
        return self.folder / "documents.npz"

    @cached_property
    def lmdb(self) -> Path:
        """`documents`, one value each."""
        return textbook.write_documents(self.folder / "lmdb", self.documents)

    @cached_property
    def checkpoint(self) -> Path:
        """MiniLM as Hugging Face publishes it, with its graph where infinity looks for it."""
        source = _published()
        folder, onnx = CACHE / "checkpoint", CACHE / "checkpoint" / "onnx" / "model.onnx"
        for path in (path for path in source.rglob("*") if path.is_file()):
            link = folder / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path)
        if not onnx.exists():
            _export_states(source, onnx)
        return folder

    def random_store(
        self, name: str, bundle: Path, documents: int, *, encoding: str = "float32", generations: int = 1
    ) -> tuple[Path, list[str]]:
        """A store of random embeddings that a bundle can serve, and the names of its generations, none with anything in
        common; ids are as `number_id` says.
        """
        path, names = self.folder / name, []
        settings = served_by(Bundle.open(bundle, verify=False)) | {"encoding": encoding}
        for _ in range(generations):
            names.append(publish(Store(path), documents, first_text=self._texts, **settings))
            self._texts += documents
        return path, names

    def workload(
        self,
        name: str,
        *,
        documents: int | None = None,
        queries: int = DIFFERENT_QUERIES,
        tasks: int = 1,
        lists: int = LISTS,
    ) -> Path:
        """Uniform requests, of the corpus or of a random store of so many documents."""
        path = self.folder / f"workload-{name}-{documents}-{tasks}.json"
        if not path.exists():
            uniform(self._queries[:queries], documents or [*self.texts], tasks=tasks, lists=lists).save(path)
        return path

    @cached_property
    def zipf_workload(self) -> Path:
        """Requests of the corpus by Zipf's law."""
        path = self.folder / "workload-zipf.json"
        return zipf(self._queries, [*self.texts], requests=ZIPF_REQUESTS).save(path)

    def asked(self, workload: Path) -> str:
        """How long the queries of a workload are, in words."""
        asked = Workload.load(workload)
        return described([asked.queries[query] for request in asked.sequence for query, _ in request], self._tokens)

    @cached_property
    def _queries(self) -> list[str]:
        """So many that hardly two of those in flight are equal, which a scorer encodes once."""
        bodies = [json.loads(line)["text"].partition("\n")[2] for line in self._corpus]
        return phrases(bodies, lengths(DIFFERENT_QUERIES), self._tokens)

    @cached_property
    def _tokenizer(self) -> WordPiece:
        return WordPiece(_published() / "tokenizer.json", max_tokens=256)

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode(texts).ids]


def _published() -> Path:
    """The folder of MiniLM's package."""
    package = PACKAGES["all-minilm-l6-v2"]
    return Path(str(resources.files(package.module))) / package.folder


def _twinbert(*words: str) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise NotMeasuredError(f"twinbert {' '.join(words[:2])}: {last_words(done.stderr)}")


def _export_states(source: Path, output: Path) -> None:
    """A checkpoint's token states as ONNX, as optimum exports them."""
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    ones = torch.ones(2, 5, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    output.parent.mkdir(parents=True, exist_ok=True)

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(
                input_ids=ids, attention_mask=mask, token_type_ids=kinds
            ).last_hidden_state
            return states

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it worked is seen from rankings
        torch.onnx.export(
            States(),
            (ones, ones, torch.zeros_like(ones)),
            str(output),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "B", 1: "L"} for name in names} | {"last_hidden_state": {0: "B", 1: "L"}},
            dynamo=False,
            opset_version=17,
        )
