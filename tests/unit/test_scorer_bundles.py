"""Where a scorer's bundles come from, and how long they stay."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scorer_server.bundles import BundleFolder, OneBundle
from scorer_server.settings import Settings
from tests.bundles import retrained, variant
from twinbert.bundle import BUNDLE_JSON, Bundle
from twinbert.errors import BundleError, MismatchError
from twinbert.tuning import Choice, keep


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Bundle `a`, `b` of another fingerprint, and things that are no bundles."""
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "a")
    variant(tiny_bundle, tmp_path / "bundles" / "b", "document", retrained)
    (tmp_path / "bundles" / "notes.txt").touch()
    (tmp_path / "bundles" / "empty").mkdir()
    return tmp_path / "bundles"


def meant_for(bundle: Bundle, **changes: str) -> Any:
    """As much of a generation's manifest as bundles are found by."""
    fields = {"fingerprint": bundle.fingerprint, "dimension": bundle.dimension, "model": bundle.model}
    return SimpleNamespace(name="000001-00000000", **(fields | changes))


def test_each_generation_gets_the_bundle_of_its_model(folder: Path) -> None:
    """One that is there already is found, and so is one that is copied into the folder later."""
    bundles, a, b = BundleFolder(folder, Settings()), Bundle.open(folder / "a"), Bundle.open(folder / "b")
    shutil.move(folder / "b", folder.parent / "aside")
    assert bundles.runtime(meant_for(a)).bundle.path == a.path
    with pytest.raises(BundleError, match=rf"no bundle here is model {b.model}; there is a \({a.model[:12]}\)"):
        bundles.runtime(meant_for(b))
    shutil.move(folder.parent / "aside", folder / "z")
    assert bundles.runtime(meant_for(b)).bundle.path == folder / "z"


def test_a_bundle_is_loaded_once_and_given_up_with_its_last_user(folder: Path) -> None:
    """Generations of one model share what is loaded; when none is held any more, the memory is free."""
    bundles, manifest = BundleFolder(folder, Settings()), meant_for(Bundle.open(folder / "a"))
    first = bundles.runtime(manifest)
    assert bundles.runtime(manifest) is first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert bundles.runtime(manifest).bundle.model == manifest.model


def test_a_bundle_is_verified_before_it_serves(folder: Path) -> None:
    """One that was damaged is refused by the file's name, whatever the others are."""
    b = meant_for(Bundle.open(folder / "b"))
    content = bytearray((folder / "b" / "query.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "b" / "query.onnx").write_bytes(content)
    bundles = BundleFolder(folder, Settings())
    with pytest.raises(BundleError, match=r"query.onnx: does not have the sha256"):
        bundles.runtime(b)
    bundles.runtime(meant_for(Bundle.open(folder / "a")))


def test_what_does_not_fit_is_refused_with_both_sides(folder: Path) -> None:
    """A manifest that names a model and another fingerprint than the model's, loaded already or not; `--bundle` too."""
    a, b = Bundle.open(folder / "a"), Bundle.open(folder / "b")
    wrong = meant_for(a, fingerprint=b.fingerprint)
    both = rf"has fingerprint {b.fingerprint}, bundle .*/a has {a.fingerprint}"
    bundles = BundleFolder(folder, Settings())
    with pytest.raises(MismatchError, match=both):
        bundles.runtime(wrong)
    kept = bundles.runtime(meant_for(a))
    with pytest.raises(MismatchError, match=both):
        bundles.runtime(wrong)
    assert kept.bundle.model == a.model
    with pytest.raises(MismatchError, match=both):
        OneBundle(folder / "a", Settings()).runtime(meant_for(b))


def test_one_bundle_serves_every_model_of_its_fingerprint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That is what `--bundle` pins; the log says whose generation it is."""
    one, a = OneBundle(folder / "a", Settings()), Bundle.open(folder / "a")
    runtime = one.runtime(meant_for(a))
    assert "serving_another_model" not in caplog.messages
    with caplog.at_level(logging.WARNING):
        assert one.runtime(meant_for(a, model="ab" * 32)) is runtime
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "serving_another_model"
    said = json.dumps(vars(record)["fields"])
    assert "ab" * 32 in said
    assert a.model in said


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (lambda _: "", "is not JSON"),
        (lambda kept: kept[:-9], "is not JSON"),
        (lambda _: "[]", "holds no JSON object"),
        (lambda _: "{}", "made_on is missing"),
        (lambda kept: kept.replace("float32", "int8"), "engine is 'int8', it must be float32"),
        (lambda kept: kept.replace('"threads": 2', '"threads": 0'), "threads is 0"),
    ],
)
def test_a_broken_tuning_is_as_none(
    folder: Path, caplog: pytest.LogCaptureFixture, damaged: Callable[[str], str], why: str
) -> None:
    """What is kept for a bundle and is no good does not keep it from serving; the log says why, and what to do."""
    bundle = Bundle.open(folder / "a")
    file = keep(bundle, Choice(engine="float32", threads=2), folder.parent / "tuning")
    file.write_text(damaged(file.read_text()))
    with caplog.at_level(logging.INFO):
        runtime = BundleFolder(folder, Settings(engine="auto", tuning=file.parent)).runtime(meant_for(bundle))
    assert runtime.engine == "float32"
    [said] = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "bundle_opened"]
    assert (said["engine"], said["threads"]) == ("float32", 1)
    assert all(part in said["why"] for part in (str(file), why, "run `twinbert bundle tune`"))


def test_a_folder_that_has_no_bundles_is_said(folder: Path, tmp_path: Path) -> None:
    """A bundle itself, nothing, and a folder of other things."""
    with pytest.raises(BundleError, match="is a bundle, not a folder of bundles"):
        Bundle.of_model(folder / "a", "ab" * 32)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        Bundle.of_model(tmp_path / "none", "ab" * 32)
    with pytest.raises(BundleError, match="there is none: copy it here"):
        Bundle.of_model(folder / "empty", "ab" * 32)


def test_query_digests_tell_query_towers_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    """A new query tower, or length, has another; a new document tower, which no query is encoded by, does not."""
    a = Bundle.open(tiny_bundle)
    assert Bundle.open(variant(tiny_bundle, tmp_path / "d", "document", retrained)).query_digest() == a.query_digest()
    assert Bundle.open(variant(tiny_bundle, tmp_path / "q", "query", retrained)).query_digest() != a.query_digest()
    shutil.copytree(tiny_bundle, tmp_path / "l")
    configuration = json.loads((tmp_path / "l" / BUNDLE_JSON).read_text())
    configuration["towers"]["query"]["max_tokens"] -= 1
    (tmp_path / "l" / BUNDLE_JSON).write_text(json.dumps(configuration))
    assert Bundle.open(tmp_path / "l").query_digest() != a.query_digest()
