"""Opening a bundle: what it says, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinbert.bundle import BUNDLE_JSON, Bundle, to_json
from twinbert.errors import BundleError
from twinbert.model.checkpoint import open_twin
from twinbert.runtime import Runtime

FILES = ("crossing.cosine.onnx", "document.onnx", "query.onnx", "model.safetensors", "tokenizer.json")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes bundle.json as an editor would."""
    configuration = json.loads((bundle / BUNDLE_JSON).read_bytes())
    change(configuration)
    (bundle / BUNDLE_JSON).write_bytes(to_json(configuration))


def test_a_bundle_says_what_it_is(tiny_bundle: Path, other_bundle: Path) -> None:
    """An opened bundle has its shape, its crossings and its digests, which differ between bundles."""
    tiny, other = Bundle.open(tiny_bundle), Bundle.open(str(other_bundle))
    assert (tiny.dimension, tiny.pooling, tiny.normalisation, tiny.activation) == (32, "weighted", "l2", "none")
    assert (other.dimension, other.pooling, other.normalisation, other.activation) == (32, "cls", "none", "tanh")
    assert (tiny.max_tokens("query"), tiny.max_tokens("document")) == (16, 32)
    assert (tiny.default_crossing, list(tiny.crossings), tiny.calibrated) == ("cosine", ["cosine"], False)
    assert (tiny.fixed_step, other.fixed_step) == (False, True)
    assert tiny.quality["parity"]["embeddings"] <= 1e-4
    assert tiny.file("query.onnx") == tiny_bundle / "query.onnx"
    assert len({tiny.model, tiny.fingerprint, other.model, other.fingerprint}) == 4


def test_bundle_json_is_canonical(tiny_bundle: Path) -> None:
    """bundle.json has one serialisation: what was parsed gives its bytes again."""
    content = (tiny_bundle / BUNDLE_JSON).read_bytes()
    assert to_json(json.loads(content)) == content
    assert content.endswith(b"}\n")


def test_a_bundle_from_before_trigrams_opens(copy: Path, tiny_bundle: Path) -> None:
    """A bundle that says nothing of what a token is has WordPiece tokens, the same fingerprint, and its own bytes."""
    _edit(copy, lambda c: [tower["architecture"].pop("embedding") for tower in c["towers"].values()])
    opened = Bundle.open(copy)
    assert opened.fingerprint == Bundle.open(tiny_bundle).fingerprint
    assert opened.model == hashlib.sha256((copy / BUNDLE_JSON).read_bytes()).hexdigest()
    assert open_twin(opened).config == open_twin(Bundle.open(tiny_bundle)).config
    text = ["running shoes"]
    np.testing.assert_array_equal(Runtime(opened).encode(text), Runtime(Bundle.open(tiny_bundle)).encode(text))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(copy: Path, name: str) -> None:
    """Any changed byte of any file is refused, and the file named, unless verification was waived."""
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: does not have the sha256"):
        Bundle.open(copy)
    assert Bundle.open(copy, verify=False).dimension == 32


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_is_found(copy: Path, name: str) -> None:
    """A file of another size is refused even without verification."""
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name}: has \d+ bytes, bundle.json says"):
        Bundle.open(copy, verify=False)


def test_a_missing_file_is_found(copy: Path) -> None:
    """Serving needs every file but the weights to train on from, whose absence is said by whoever asks for them."""
    (copy / "model.safetensors").unlink()
    bundle = Bundle.open(copy)
    with pytest.raises(BundleError, match=r"model\.safetensors: this copy of the bundle was made without it"):
        bundle.file("model.safetensors")
    with pytest.raises(BundleError, match=r"lists no file 'model\.bin'"):
        bundle.file("model.bin")
    (copy / "query.onnx").unlink()
    with pytest.raises(BundleError, match=r"query\.onnx: is missing"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """A missing directory, one without bundle.json, and a bundle.json that is none each have their message."""
    with pytest.raises(BundleError, match="absent: does not exist"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(
        BundleError, match=r"has no bundle\.json, so it is no bundle; `twinbert bundle import` makes one"
    ):
        Bundle.open(tmp_path)
    for content, words in (
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("\xff", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
    ):
        (tmp_path / BUNDLE_JSON).write_text(content, encoding="latin-1")
        with pytest.raises(BundleError, match=words):
            Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=2), "has format 2, this version reads 1; upgrade twinbert"),
        (lambda c: c.pop("format"), "format is missing, it must be a whole number above 0"),
        (lambda c: c.update(dimension="32"), "dimension is '32', it must be a whole number above 0"),
        (lambda c: c.update(pooling="max"), "pooling is 'max', it must be cls or weighted"),
        (lambda c: c.pop("activation"), "activation is missing, it must be tanh or none"),
        (lambda c: c.update(default_crossing="residual"), "default_crossing is 'residual', it must be cosine"),
        (lambda c: c["tokenizer"].update(kind=1), r"tokenizer\.kind is 1, it must be a string"),
        (lambda c: c["towers"].pop("document"), r"towers\.document is missing, it must be an object"),
        (lambda c: c["towers"]["query"].update(max_tokens=0), r"towers\.query\.max_tokens is 0"),
        (lambda c: c["towers"]["query"].update(file="other.onnx"), r"towers\.query\.file is 'other.onnx'"),
        (lambda c: c["crossings"]["cosine"].update(calibrated="no"), r"crossings\.cosine\.calibrated is 'no'"),
        (lambda c: c["files"]["query.onnx"].pop("sha256"), r"files\.query\.onnx\.sha256 is missing"),
        (lambda c: c.update(files=[]), "files is .*, it must be an object"),
        (lambda c: c.update(quality=[]), r"quality is \[\], it must be an object"),
        (lambda c: c.update(pooling="9" * 10_000), r"pooling is '9+\.\.\.9+', it must be cls or weighted"),
        (lambda c: c.update(normalisation="none"), "states fingerprint .* it was changed by hand"),
        (lambda c: c["towers"]["document"].update(max_tokens=31), "states fingerprint .* it was changed by hand"),
        (lambda c: c.update(fingerprint="0" * 64), "states fingerprint 0{64}"),
    ],
)
def test_a_wrong_field_is_named(copy: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    """Every field of bundle.json that is missing, of another kind or changed by hand is named with what it must be."""
    _edit(copy, change)
    with pytest.raises(BundleError, match=words) as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["../outside", "/etc/hosts", "a\\b", "..", ".", "", "nul\0", BUNDLE_JSON])
def test_only_plain_file_names_are_listed(copy: Path, name: str) -> None:
    """A bundle cannot name a file outside its directory."""
    _edit(copy, lambda c: c["files"].update({name: {"size": 1, "sha256": "0" * 64, "optional": True}}))
    with pytest.raises(BundleError, match="is not a plain file name"):
        Bundle.open(copy)


@pytest.mark.parametrize("verify", [False, True])
def test_a_name_that_no_file_can_have_is_refused(copy: Path, verify: bool) -> None:
    """A listed name that the file system refuses is named like any other that is not there."""
    name = "n" * 300
    _edit(copy, lambda c: c["files"].update({name: {"size": 1, "sha256": "0" * 64, "optional": True}}))
    with pytest.raises(BundleError, match=f"{name}: cannot be read: File name too long; copy or export the bundle"):
        Bundle.open(copy, verify=verify)


def test_links_stay_inside(copy: Path, tmp_path: Path) -> None:
    """A link to a file outside the directory is refused; one inside, as a mounted volume has, is not."""
    (copy / "query.onnx").rename(copy / "data")
    (copy / "query.onnx").symlink_to("data")
    Bundle.open(copy)
    (copy / "data").rename(tmp_path / "outside")
    (copy / "query.onnx").unlink()
    (copy / "query.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"query\.onnx: is not a file inside the bundle"):
        Bundle.open(copy)
