"""A bundle: the directory that holds all that serving one trained TwinBERT needs. `bundle.json` is defined here.

    bundle.json               this file's format: what the bundle is, and size and sha256 of every other file
    tokenizer.json            text → token ids
    query.onnx, document.onnx the towers: input_ids int64 [B, L], or [B, L, T] where a word is its trigrams,
                              attention_mask int64 [B, L] → embeddings float32 [B, D]
    crossing.cosine.onnx,     queries [Q, D], documents [N, D] float32, task int64 [N] → scores float32 [N]; one or both
    crossing.residual.onnx
    query.float32.onnx,       the query tower for texts that are packed, if `bundle quantize` made it: its inputs are in
    query.int8.onnx           `twinbert.model.packed`
    model.safetensors         the weights to train on from; not needed for serving

A calibrated crossing tells its temperature and bias in `calibration` and, unless an earlier version wrote it, on how
many pairs they were fitted, with the expected calibration error of those very pairs: `fitted_pairs`,
`fitted_error_before` and `fitted_error_after`.

Two digests name a bundle. `model` is the sha256 of bundle.json's bytes, and so of everything. `fingerprint` is the
sha256 of what shapes stored document embeddings: embeddings and crossings of unequal fingerprints never meet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from twinbert.errors import BundleError
from twinbert.fields import Fields, parse_json

FORMAT = 1
BUNDLE_JSON = "bundle.json"

Tower = Literal["query", "document"]
TOWERS: tuple[Tower, ...] = ("query", "document")
Engine = Literal["float32", "int8"]
"""What computes the query tower."""
ENGINES: tuple[Engine, ...] = get_args(Engine)

_REMEDY = "copy or export the bundle again"
_NAMES_SHOWN = 10

# Larger than any model has, and small enough that arrays of these sizes can be made.
_MOST_DIMENSION = _MOST_TOKENS = 1 << 16

# Of bundle.json, which takes kilobytes.
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerEntry:
    """A tower: its file, and how many tokens it reads (special tokens included; longer texts are truncated)."""

    file: str
    max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossingEntry:
    """A crossing layer: its file, and whether its probabilities were calibrated on labelled data."""

    file: str
    calibrated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerEntry:
    """The tokenizer: its kind, one of `twinbert.tokenizer.KINDS`, and file."""

    kind: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle. Make one with `Bundle.open`; nothing here holds a file open.

    Attributes:
        path: the directory, absolute.
        model: sha256 of bundle.json, 64 hex digits.
        fingerprint: of the document embeddings, 64 hex digits.
        dimension: D, the length of an embedding.
        pooling: `cls` or `weighted`.
        normalisation: `l2` or `none`.
        activation: what an embedding passes through last before it is normalised: `tanh` or `none`.
        towers: query and document tower.
        tokenizer: what both towers read.
        packed: files of the query tower for packed texts, by engine; may be empty.
        crossings: by name: `cosine`, `residual`.
        default_crossing: the crossing of requests that name none.
        quality: what export measured: parity with torch, what each stored encoding costs.
        configuration: bundle.json as it was parsed.
    """

    path: Path
    model: str
    fingerprint: str
    dimension: int
    pooling: str
    normalisation: str
    activation: str
    towers: Mapping[Tower, TowerEntry]
    tokenizer: TokenizerEntry
    packed: Mapping[Engine, str]
    crossings: Mapping[str, CrossingEntry]
    default_crossing: str
    quality: Mapping[str, Any]
    configuration: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Bundle:
        """Reads bundle.json and checks that the directory is what it says.

        Args:
            path: the bundle's directory.
            verify: also read every file and compare its sha256; without it only presence and size are checked.

        Raises:
            BundleError: the bundle is missing, damaged or of another format; the message names the file.
        """
        directory = Path(path).absolute()
        content, configuration = _read(directory)
        bundle = _parse(directory, hashlib.sha256(content).hexdigest(), configuration)
        _check_files(bundle, verify=verify)
        return bundle

    @classmethod
    def of_model(cls, folder: Path, model: str) -> Bundle:
        """Opens and verifies the bundle of a model among those of a folder; what the others are does not matter.

        Raises:
            BundleError: the folder does not have it, or it is damaged.
        """
        there = _models(folder)
        if model not in there:
            known = ", ".join(f"{path.name} ({digest[:12]})" for digest, path in [*there.items()][:_NAMES_SHOWN])
            raise BundleError(f"{folder}: no bundle here is model {model}; there is {known or 'none'}: copy it here")
        bundle = cls.open(there[model])
        if bundle.model != model:
            raise BundleError(f"{bundle.path}: was replaced while it was opened; try again")
        return bundle

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Engines that the bundle has a query tower for."""
        return tuple(engine for engine in ENGINES if engine == "float32" or engine in self.packed)

    def tower_file(self, tower: Tower, engine: Engine = "float32") -> str:
        """Name of the file that computes a tower.

        Raises:
            BundleError: the bundle has no query tower for this engine.
        """
        if tower == "query" and engine in self.packed:
            return self.packed[engine]
        if tower == "query" and engine != "float32":
            raise BundleError(
                f"{self.path}: has no {engine} query tower; `twinbert bundle quantize` adds one to a copy"
            )
        return self.towers[tower].file

    def query_digest(self, engine: Engine = "float32") -> str:
        """Of what shapes query embeddings, 64 hex digits: bundles and engines that share it encode a query alike."""
        shaping = {
            "query_onnx": self.sha256(self.tower_file("query", engine)),
            "tokenizer": self.sha256(self.tokenizer.file),
            "kind": self.tokenizer.kind,
            "max_tokens": self.max_tokens("query"),
        }
        return _canonical_digest(shaping)

    @property
    def calibrated(self) -> bool:
        """Whether the default crossing's probabilities were calibrated."""
        return self.crossings[self.default_crossing].calibrated

    @property
    def fixed_step(self) -> bool:
        """Whether every embedding lies in [-1, 1] by construction, so that uint8 can use its fixed step 2/255."""
        return self.activation == "tanh" and self.normalisation == "none"

    def max_tokens(self, tower: Tower) -> int:
        """Tokens that a tower reads, special tokens included."""
        return self.towers[tower].max_tokens

    def sha256(self, name: str) -> str:
        """sha256 of a file of the bundle, 64 hex digits."""
        return str(self.configuration["files"][name]["sha256"])

    def file(self, name: str) -> Path:
        """Path of a file that bundle.json lists.

        Raises:
            BundleError: the bundle has no such file, or it is an optional one that is absent.
        """
        path = self.path / name
        if name not in self.configuration["files"]:
            raise BundleError(f"{self.path}: bundle.json lists no file {name!r}")
        if not path.exists():
            raise BundleError(f"{path}: this copy of the bundle was made without it; take it from the original")
        return path


def fingerprint(
    *, document_onnx: str, tokenizer: str, max_tokens: int, pooling: str, normalisation: str, dimension: int
) -> str:
    """The fingerprint of document embeddings; `document_onnx` and `tokenizer` are the sha256 of those files."""
    shaping = {
        "document_onnx": document_onnx,
        "tokenizer": tokenizer,
        "max_tokens": max_tokens,
        "pooling": pooling,
        "normalisation": normalisation,
        "dimension": dimension,
    }
    return _canonical_digest(shaping)


def to_json(configuration: Mapping[str, Any]) -> bytes:
    """The one serialisation of bundle.json."""
    return (json.dumps(configuration, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file, as bundle.json lists it."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _canonical_digest(shaping: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _models(folder: Path) -> dict[str, Path]:
    """The bundles of a folder that can be read, by model, none of them verified; of equal ones the first by name."""
    if (folder / BUNDLE_JSON).exists():
        raise BundleError(f"{folder}: is a bundle, not a folder of bundles; name its parent, or use it as --bundle")
    try:
        paths = sorted(folder.iterdir(), reverse=True)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read: {error.strerror}; name a folder of bundles") from error
    found = {}
    for path in paths:
        with contextlib.suppress(BundleError):  # a file, a folder of something else, or one that others may read
            found[hashlib.sha256(_content(path)).hexdigest()] = path
    return found


def _read(directory: Path) -> tuple[bytes, dict[str, Any]]:
    content = _content(directory)
    return content, parse_json(directory / BUNDLE_JSON, content, dict, remedy=_REMEDY)


def _content(directory: Path) -> bytes:
    """The bytes of bundle.json: what a link points at may have no end."""
    path = directory / BUNDLE_JSON
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        missing = "has no bundle.json, so it is no bundle" if directory.is_dir() else "does not exist"
        raise BundleError(f"{directory}: {missing}; `twinbert bundle import` makes one") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise BundleError(f"{path}: has over {_MOST_BYTES:,} bytes, so it is no bundle.json; {_REMEDY}")
    return content


def _parse(directory: Path, model: str, configuration: dict[str, Any]) -> Bundle:
    fields = Fields(directory / BUNDLE_JSON, configuration, remedy=_REMEDY)
    if fields.count("format") != FORMAT:
        raise BundleError(
            f"{directory / BUNDLE_JSON}: has format {configuration['format']}, this version reads {FORMAT}; "
            "upgrade twinbert, or export the bundle with this version"
        )
    digests = fields.mapping("files", lambda file: (file.count("size"), file.text("sha256"))[1])

    def listed(entry: Fields) -> str:
        return entry.choice("file", *digests)

    tokenizer = fields.fields("tokenizer")
    packed = fields.mapping("packed", listed) if fields.has("packed") else {}
    towers = {
        name: TowerEntry(file=listed(entry), max_tokens=entry.count("max_tokens", most=_MOST_TOKENS))
        for name, entry in ((name, fields.fields("towers").fields(name)) for name in TOWERS)
    }
    crossings = fields.mapping(
        "crossings", lambda entry: CrossingEntry(file=listed(entry), calibrated=entry.flag("calibrated"))
    )
    bundle = Bundle(
        path=directory,
        model=model,
        fingerprint=fields.text("fingerprint"),
        dimension=fields.count("dimension", most=_MOST_DIMENSION),
        pooling=fields.choice("pooling", "cls", "weighted"),
        normalisation=fields.choice("normalisation", "l2", "none"),
        activation=fields.choice("activation", "tanh", "none"),
        towers=towers,
        tokenizer=TokenizerEntry(kind=tokenizer.text("kind"), file=listed(tokenizer)),
        packed={engine: packed[engine] for engine in ENGINES if engine in packed},
        crossings=crossings,
        default_crossing=fields.choice("default_crossing", *crossings),
        quality=fields.values("quality", {}),  # while export measures it, there is none
        configuration=configuration,
    )
    computed = fingerprint(
        document_onnx=digests[towers["document"].file],
        tokenizer=digests[bundle.tokenizer.file],
        max_tokens=towers["document"].max_tokens,
        pooling=bundle.pooling,
        normalisation=bundle.normalisation,
        dimension=bundle.dimension,
    )
    if bundle.fingerprint != computed:
        raise BundleError(
            f"{directory / BUNDLE_JSON}: states fingerprint {bundle.fingerprint}, what it describes has {computed}; "
            f"it was changed by hand: {_REMEDY}"
        )
    return bundle


def _check_files(bundle: Bundle, *, verify: bool) -> None:
    """Every listed file is a plain name inside the directory, of the stated size and, with `verify`, sha256."""
    root = bundle.path.resolve()
    digests: dict[tuple[int, int], str] = {}  # by device and inode: equal towers are one file with two names
    for name, entry in bundle.configuration["files"].items():
        path = bundle.path / name
        if name in ("", ".", "..", BUNDLE_JSON) or "/" in name or "\\" in name or "\0" in name:
            raise BundleError(f"{bundle.path / BUNDLE_JSON}: lists {name!r}, which is not a plain file name")
        try:
            _check_file(path, entry, root, digests if verify else None)
        except OSError as error:  # a name too long, a folder or a file that may not be read
            raise BundleError(f"{path}: cannot be read: {error.strerror}; {_REMEDY}") from error


def _check_file(path: Path, entry: Mapping[str, Any], root: Path, digests: dict[tuple[int, int], str] | None) -> None:
    if not path.exists():
        if entry.get("optional") is True:
            return
        raise BundleError(f"{path}: is missing; {_REMEDY}")
    if not path.resolve().is_relative_to(root) or not path.is_file():
        raise BundleError(f"{path}: is not a file inside the bundle; copy the bundle with its links resolved")
    status = path.stat()
    if status.st_size != entry["size"]:
        raise BundleError(f"{path}: has {status.st_size} bytes, bundle.json says {entry['size']}; {_REMEDY}")
    if digests is None:
        return
    inode = (status.st_dev, status.st_ino)
    if inode not in digests:
        digests[inode] = describe_file(path)["sha256"]
    if digests[inode] != entry["sha256"]:
        raise BundleError(f"{path}: does not have the sha256 that bundle.json says; {_REMEDY}")
