"""Bundles and stores that somebody made to do harm: all checksums are right, what they say is not."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from store.errors import CorruptError
from store.store import Store
from twinbert.bundle import BUNDLE_JSON, TOWERS, Bundle, describe_file, fingerprint, to_json
from twinbert.errors import BundleError
from twinbert.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def forge(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Changes bundle.json, and makes its digests right."""
    configuration = json.loads((bundle / BUNDLE_JSON).read_bytes())
    for name in configuration["files"]:
        configuration["files"][name] |= describe_file(bundle / name)
    change(configuration)
    tower, files = configuration["towers"]["document"], configuration["files"]
    configuration["fingerprint"] = fingerprint(
        document_onnx=files[tower["file"]]["sha256"],
        tokenizer=files[configuration["tokenizer"]["file"]]["sha256"],
        max_tokens=tower["max_tokens"],
        **{key: configuration[key] for key in ("pooling", "normalisation", "dimension")},
    )
    (bundle / BUNDLE_JSON).write_bytes(to_json(configuration))


def point_weights_at(bundle: Path, location: str) -> None:
    """Makes the query tower read its word embeddings from another file."""
    path = bundle / "query.onnx"
    model = onnx.load(str(path))
    weights = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("where", ["../secret", "absolute", "beside", "link", "sub/../../secret"])
def test_a_model_reads_no_other_file(bundle: Path, tmp_path: Path, where: str) -> None:
    """Weights outside the model's own file, whose bytes no checksum covers, are refused wherever they are."""
    secret = np.zeros(1 << 20, dtype=np.float32).tobytes()
    (tmp_path / "secret").write_bytes(secret)
    (bundle / "beside").write_bytes(secret)
    (bundle / "link").symlink_to(tmp_path / "secret")
    (bundle / "sub").mkdir()
    point_weights_at(bundle, str(tmp_path / "secret") if where == "absolute" else where)
    forge(bundle)
    with pytest.raises(BundleError, match=r"query\.onnx: onnxruntime .* cannot load it"):
        Runtime(Bundle.open(bundle))


def test_a_model_reads_no_file_of_the_working_directory(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are weights looked for where the process happens to run."""
    (tmp_path / "here").write_bytes(np.zeros(1 << 20, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    point_weights_at(bundle, "here")
    forge(bundle)
    with pytest.raises(BundleError, match="cannot load it"):
        Runtime(Bundle.open(bundle))


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "countless dimensions": (lambda c: c.update(dimension=10**12), "dimension is 1000000000000, it must be"),
    "other dimension": (lambda c: c.update(dimension=64), "of dimension 64; export"),
    "countless tokens": (lambda c: c["towers"]["query"].update(max_tokens=10**30), "max_tokens is 1"),
    "crossing as tower": (lambda c: c["towers"]["query"].update(file="crossing.cosine.onnx"), "has inputs documents"),
    "tower as crossing": (lambda c: c["crossings"]["cosine"].update(file="query.onnx"), "has inputs attention_mask"),
    "tokenizer as tower": (lambda c: c["towers"]["query"].update(file="tokenizer.json"), "cannot load it"),
    "countless bytes": (lambda c: c["files"]["query.onnx"].update(size=10**30), "bundle.json says 1"),
    "path of another file": (
        lambda c: c["files"].update({"../../etc/passwd": {"size": 1, "sha256": "0" * 64, "optional": True}}),
        "'../../etc/passwd', which is not a plain file name",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_bundle_that_lies_is_refused(bundle: Path, lie: str) -> None:
    """Whatever bundle.json claims is held against bounds and against its files before anything is sized by it."""
    change, said = LIES[lie]
    forge(bundle, change)
    with pytest.raises(BundleError, match=re.escape(said)):
        Runtime(Bundle.open(bundle), towers=TOWERS)


def test_a_graph_with_another_shape_than_it_needs_is_refused(bundle: Path) -> None:
    """Also where its output has no dimension at all."""
    model = onnx.load(str(bundle / "query.onnx"))
    (output,) = [one for one in model.graph.output if one.name == "embeddings"]
    squeezed = "before"
    for node in model.graph.node:
        node.output[:] = [squeezed if name == "embeddings" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("ReduceMean", [squeezed], ["embeddings"], keepdims=0))
    del output.type.tensor_type.shape.dim[:]
    (bundle / "query.onnx").write_bytes(model.SerializeToString())
    forge(bundle)
    with pytest.raises(BundleError, match=r"query\.onnx: "):
        Runtime(Bundle.open(bundle), towers=TOWERS)


def test_a_graph_with_names_that_are_no_text_is_refused(bundle: Path) -> None:
    """ONNX Runtime quotes them in its message, which Python then cannot read."""
    model = onnx.load(str(bundle / "query.onnx"))
    model.graph.node[0].input[0] = "absent_"
    (bundle / "query.onnx").write_bytes(model.SerializeToString().replace(b"absent_", b"absent\xff"))
    forge(bundle)
    with pytest.raises(BundleError, match=r"query\.onnx: "):
        Runtime(Bundle.open(bundle), towers=TOWERS)


def endless(path: Path) -> None:
    """Puts a link to a device in place of a file."""
    path.unlink()
    path.symlink_to("/dev/zero")


def test_a_file_without_end_is_not_read_to_its_end(bundle: Path, tmp_path: Path) -> None:
    """bundle.json, a manifest and CURRENT are read up to what they can have; a link to a device is refused."""
    endless(bundle / BUNDLE_JSON)
    with pytest.raises(BundleError, match="has over 16,777,216 bytes"):
        Bundle.open(bundle)
    store = Store(tmp_path / "store")
    store.create()
    (store.path / "generations" / "000001-00000000.json").touch()
    endless(store.path / "generations" / "000001-00000000.json")
    with pytest.raises(CorruptError, match="has over 16,777,216 bytes"):
        store.manifest("000001-00000000")
    (store.path / "CURRENT").touch()
    endless(store.path / "CURRENT")
    with pytest.raises(CorruptError, match="has over"):
        store.current()


def test_a_file_without_end_hides_no_bundle(bundle: Path, tmp_path: Path) -> None:
    """In a folder of bundles one whose bundle.json is a link to a device is passed over, after no more than that."""
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / BUNDLE_JSON).touch()
    endless(tmp_path / "zero" / BUNDLE_JSON)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (256 << 20), hard))  # else the test would take all memory to fail
    try:
        assert Bundle.of_model(tmp_path, Bundle.open(bundle).model).path == bundle
        with pytest.raises(BundleError, match=r"no bundle here is model 0; there is bundle \(\w+\): copy it here"):
            Bundle.of_model(tmp_path, "0")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", ["../../etc/passwd", "000001-00000000/../x", "", "000001-0000000g", "/etc/passwd"])
def test_current_names_no_other_file(tmp_path: Path, name: str) -> None:
    """What CURRENT holds is a generation's name or nothing."""
    store = Store(tmp_path / "store")
    store.create()
    (store.path / "CURRENT").write_text(f"{name}\n")
    with pytest.raises(CorruptError, match="not a generation's name"):
        store.current()


_UNSAFE = (
    "pickle.",
    "cPickle",
    "marshal.",
    "shelve.",
    "dill.",
    "joblib.",
    "torch.load(",
    "yaml.",
    " eval(",
    " exec(",
    "allow_pickle=True",
)


def test_nothing_that_is_installed_loads_pickles_or_evaluates_text() -> None:
    """No source of ours calls what runs what it reads; numpy loads arrays only without pickles, as is its default."""
    sources = [
        path
        for package in ("twinbert", "store", "encoder_server", "scorer_server")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert len(sources) > 100
    found = {(path.name, word) for path in sources for word in _UNSAFE if word in path.read_text()}
    assert found == set()


def test_opening_a_bundle_imports_nothing_that_unpickles(tiny_bundle: Path) -> None:
    """To serve a bundle neither torch nor another library that loads pickled models is in the process."""
    code = (
        "import sys; from twinbert.bundle import Bundle; from twinbert.runtime import Runtime;"
        f"Runtime(Bundle.open({str(tiny_bundle)!r}));"
        "sys.exit(str(sorted({'torch', 'joblib', 'dill', 'cloudpickle', 'transformers'} & sys.modules.keys())))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.stderr == "[]\n"


def test_nothing_reports_to_anybody(tiny_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's reports to its maker are off: it leaves no identifier in the home directory."""
    code = (
        "import os; from twinbert.bundle import Bundle; from twinbert.runtime import Runtime;"
        f"Runtime(Bundle.open({str(tiny_bundle)!r})).encode(['red']);"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (ran.stdout, ran.stderr) == ("1\n", "")
    assert list(tmp_path.rglob("*")) == []
