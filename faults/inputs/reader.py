"""Mutated files, read in a process of its own: Arrow, LMDB, ONNX Runtime and tokenizers are C, C++ and Rust, and what
kills them is to be noticed, and not to end the run without a word.

python -X faulthandler -m faults.inputs.reader FOLDER BUNDLE STORE     reads seeds, a line each, and answers with counts
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from faults.fault import require

# Seconds and bytes that nothing here needs: beyond them it hangs, or makes room for what a file claims.
_LONG_S = 120
_MOST_BYTES = 8 << 30

# Inputs an attempt. A bundle is read whole to be opened, and one that is run is loaded and optimised besides.
_MANIFESTS, _DOCUMENTS, _DESCRIPTIONS, _TOKENIZERS, _GRAPHS = 400, 600, 50, 10, 6


class Reader:
    """The process, seen from outside.

    Args:
        process: of this module.
        errors: where its standard error goes.
    """

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors

    def begin(self, seed: int) -> None:
        """Has it read some hundred files of each kind."""
        assert self._process.stdin is not None
        print(seed, file=self._process.stdin, flush=True)

    def outcomes(self) -> Mapping[str, int]:
        """What became of them."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            require(False, f"what read mutated files ended with {code}: {self._errors.read_text()[-4000:]}")
        counts: dict[str, int] = json.loads(line)
        return counts


@contextmanager
def reading(folder: Path, bundle: Path, store: Path) -> Iterator[Reader]:
    """A reader of mutated files of a bundle and of a store, both of which stay as they are."""
    folder.mkdir()
    words = [sys.executable, "-X", "faulthandler", "-m", "faults.inputs.reader", str(folder), str(bundle), str(store)]
    errors = folder / "errors.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        yield Reader(process, errors)


def _main(folder: Path, bundle: Path, store: Path) -> None:
    from faults.inputs import documents, manifests
    from faults.inputs.bundles import Bundles
    from store.store import Store

    # ONNX Runtime prints to standard output what it tries again.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    warnings.simplefilter("ignore")  # numpy's, of scores that are not finite
    opened, bundles, files = Store(store), Bundles(bundle, folder / "bundle"), documents.recorded()
    for line in sys.stdin:
        faulthandler.dump_traceback_later(_LONG_S, exit=True)
        chance, outcomes = random.Random(int(line)), Counter[str]()
        outcomes += manifests.read_manifests(opened, chance, _MANIFESTS)
        outcomes += documents.read_documents(folder / "documents", files, chance, _DOCUMENTS)
        outcomes += bundles.read_descriptions(chance, _DESCRIPTIONS)
        outcomes += bundles.run_tokenizers(chance, _TOKENIZERS)
        outcomes += bundles.run_graphs(chance, _GRAPHS)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(outcomes), file=replies, flush=True)


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
