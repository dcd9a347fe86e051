"""int8 on a processor without VNNI. Valgrind is one, with AVX2: it runs the real libraries, but slower."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twinbert.bundle import Bundle
from twinbert.quantize import quantize
from twinbert.runtime import Runtime
from twinbert.samples import QUERIES

_ENCODE = """
import json, sys
from pathlib import Path
import numpy as np
from twinbert import processor
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime

bundle, output, *queries = sys.argv[1:]
for name, flags in (("known", []), ("taken for one with VNNI", ["avx512_vnni"])):
    processor.flags = lambda: frozenset(flags)  # the system tells those of the real one
    runtime = Runtime(Bundle.open(Path(bundle)), engine="int8")
    together_QD = runtime.encode(queries)
    np.save(f"{output}/{name}.npy", together_QD)
    alone_QD = np.concatenate([runtime.encode([query]) for query in queries])
    print(json.dumps([name, together_QD.tobytes() == alone_QD.tobytes()]))
"""


@pytest.mark.skipif(
    shutil.which("valgrind") is None or platform.machine() != "x86_64", reason="valgrind is not installed, or no x86-64"
)
def test_int8_is_exact_without_vnni(tiny_bundle: Path, tmp_path: Path) -> None:
    """There too a query's embedding has the same bits in any company, and is the one that a processor with VNNI gives.

    Products that overflow, as they do where the processor is taken for another, would make it a worse one.
    """
    bundle = quantize(Bundle.open(tiny_bundle), tmp_path / "int8")
    words = ["valgrind", "-q", "--tool=none", sys.executable, "-c", _ENCODE, str(bundle.path), str(tmp_path), *QUERIES]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    alike = dict(json.loads(line) for line in done.stdout.splitlines())
    assert alike["known"]
    here_QD = Runtime(bundle, engine="int8").encode(QUERIES)
    # What is computed in float32 may take other kernels there.
    np.testing.assert_allclose(np.load(tmp_path / "known.npy"), here_QD, rtol=0, atol=1e-6)
    assert np.abs(np.load(tmp_path / "taken for one with VNNI.npy") - here_QD).max() > 1e-4
