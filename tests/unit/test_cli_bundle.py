"""`twinbert bundle show` on a bundle of which only the description matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinbert.bundle import BUNDLE_JSON, Bundle, describe_file, fingerprint, to_json
from twinbert.cli import main


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle that opens, without its optional weights; its graphs are never run."""
    names = ("query.onnx", "document.onnx", "crossing.cosine.onnx", "tokenizer.json")
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 100)
    files = {name: describe_file(tmp_path / name) for name in names}
    files["model.safetensors"] = {"size": 90_000_000, "sha256": "ab" * 32, "optional": True}
    shape: dict[str, Any] = {"pooling": "weighted", "normalisation": "l2", "dimension": 384}
    configuration = {
        "format": 1,
        **shape,
        "activation": "none",
        "tokenizer": {"kind": "wordpiece", "file": "tokenizer.json"},
        "towers": {
            "query": {"file": "query.onnx", "max_tokens": 32, "architecture": {"layers": 6, "hidden": 384}},
            "document": {"file": "document.onnx", "max_tokens": 256},
        },
        "crossings": {"cosine": {"file": "crossing.cosine.onnx", "calibrated": False, "a": 10.0, "b": -5.0}},
        "default_crossing": "cosine",
        "fingerprint": fingerprint(
            document_onnx=files["document.onnx"]["sha256"],
            tokenizer=files["tokenizer.json"]["sha256"],
            max_tokens=256,
            **shape,
        ),
        "quality": {"parity": {"embeddings": 3.1e-07, "limit": 0.0001}},
        "files": files,
    }
    (tmp_path / BUNDLE_JSON).write_bytes(to_json(configuration))
    return Bundle.open(tmp_path)


def test_show_prints_all_of_a_bundle(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Digests, towers, crossing with a and b, quality and files are each a line of tab-separated cells."""
    assert main(["bundle", "show", str(bundle.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {
        f"path\t{bundle.path}",
        f"model\t{bundle.model}",
        f"fingerprint\t{bundle.fingerprint}",
        "dimension\t384",
        "pooling\tweighted",
        "towers query\tfile query.onnx, max_tokens 32",
        "towers query architecture\thidden 384, layers 6",
        "crossings cosine\ta 10.0, b -5.0, calibrated no, file crossing.cosine.onnx",
        "quality parity\tembeddings 3.1e-07, limit 0.0001",
        f"query.onnx\t1,000\t{bundle.sha256('query.onnx')[:16]}\t",
        f"model.safetensors\t90,000,000\t{'ab' * 8}\tnot in this copy",
    } <= set(lines)


def test_show_on_a_terminal_is_a_table(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of 100 columns no line is longer, and no digest is cut off."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["bundle", "show", str(bundle.path)]) == 0
    shown = capsys.readouterr().out.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert max(map(len, shown.splitlines())) <= 100
    assert bundle.model in shown
    assert "not in this copy" in shown


def test_show_as_json_is_bundle_json_with_its_digest(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints bundle.json as it is, with the model and the path."""
    assert main(["bundle", "show", str(bundle.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"path": str(bundle.path), "model": bundle.model, **bundle.configuration}


def test_a_damaged_bundle_is_not_shown(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not what bundle.json says is named on one line."""
    (bundle.path / "query.onnx").write_bytes(b"x" * 1000)
    assert main(["bundle", "show", str(bundle.path)]) == 2
    assert "query.onnx: does not have the sha256" in capsys.readouterr().err
