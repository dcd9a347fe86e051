"""The process in which `bench.refresh` refreshes a million documents, so that its memory is that of a refresh."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from encoder_server.documents import DocumentSource
from encoder_server.refresh import Refresh
from store.store import Store
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime


def main() -> None:
    """Says that the model is loaded, then what the refresh took."""
    folder, store = Path(sys.argv[1]), Path(sys.argv[2])
    runtime = Runtime(Bundle.open(folder / "averaging"), towers=TOWERS)
    print("loaded", flush=True)
    begun = time.perf_counter()
    with Refresh(Store(store), runtime) as refresh:
        refresh.add(DocumentSource(path=folder / "million.jsonl"))
        added = time.perf_counter()
        refresh.commit()
        ended = time.perf_counter()
    print(json.dumps({"s": ended - begun, "commit_s": ended - added}), flush=True)


if __name__ == "__main__":
    main()
