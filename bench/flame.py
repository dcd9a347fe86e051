"""A flame graph of the scorer under load, `docs/flame.svg`: where its interpreter is, and what it waits for.

16 callers, 1 query × 100 candidates, MiniLM in int8, query cache off. py-spy reads the stacks of all threads that are
not idle, without stopping them; native code (ONNX Runtime, numpy, gRPC) counts as the Python function that called it.

python -m bench.flame [--seconds N]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from bench import environments
from bench.driver import driving
from bench.material import Material
from bench.serving import ROOT
from bench.systems import scorer

GRAPH = ROOT / "docs" / "flame.svg"

_CALLERS = 16
_SAMPLES = 250  # a second


def main() -> None:
    """Writes the graph; see the module."""
    parser = argparse.ArgumentParser(description="A flame graph of the scorer under load.")
    parser.add_argument("--seconds", type=int, default=30)
    seconds = parser.parse_args().seconds
    py_spy = environments.python("py-spy").with_name("py-spy")
    with tempfile.TemporaryDirectory(prefix="twinbert-bench-") as folder:
        material = Material(Path(folder))
        system = scorer.system("Score", material.int8(material.minilm), material.minilm_store, engine="int8")
        with driving(system, material.workload("corpus"), material.folder) as driver:
            assert driver.server is not None
            driver.begin({"do": "closed", "clients": _CALLERS, "calls": 10**9, "seconds": seconds + 5.0})
            words = ["record", "--nonblocking", "--rate", str(_SAMPLES), "--duration", str(seconds)]
            words += ["--output", str(GRAPH), "--pid", str(driver.server.process.pid)]
            subprocess.run([str(py_spy), *words], check=True)
            done = driver.end()
    title = f"Score under load: {_CALLERS} callers, MiniLM in int8, {done.rate():.0f} requests a second"
    drawn = re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{title}", GRAPH.read_text())
    # What is clicked on needs py-spy's own script, which is no part of this project; names show without it.
    clicked = r'<script.*?</script>|<text id="(unzoom|search|matched)".*?</text>| onload="[^"]*"'
    GRAPH.write_text(re.sub(clicked, "", drawn, flags=re.DOTALL))
    print(f"{done.rate():.0f} requests a second; written to {GRAPH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
