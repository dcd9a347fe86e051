"""Where a generation's bundle comes from. Either way checks that the two belong together and gives a warm runtime.

Opening reads every file of a bundle and compiles its graphs, so it runs in a thread while the old bundle serves.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Protocol

from scorer_server.settings import Settings
from store.manifest import Manifest
from twinbert.bundle import Bundle
from twinbert.errors import MismatchError
from twinbert.runtime import Runtime
from twinbert.serving.log import event
from twinbert.tuning import default_folder, kept

# What warms the engine: lengths from one word to a long query.
_WARM_QUERIES = tuple(" ".join(["warm"] * words) for words in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))


class Bundles(Protocol):
    """Finds the bundle that serves a generation."""

    def runtime(self, manifest: Manifest) -> Runtime:
        """The generation's bundle at work, warm.

        Raises:
            BundleError: it is missing, damaged, or cannot be loaded.
            MismatchError: it has another fingerprint than the generation.
        """


class OneBundle:
    """The same bundle for every generation of its fingerprint, whatever model a generation was published for.

    Args:
        path: the bundle's directory.
        settings: what encodes its queries.

    Raises:
        BundleError: the bundle is missing or damaged.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._bundle, self._settings = Bundle.open(path), settings
        self._runtime: Runtime | None = None

    def runtime(self, manifest: Manifest) -> Runtime:
        """See `Bundles`."""
        require_match(manifest, self._bundle)
        if manifest.model != self._bundle.model:
            models = f"generation {manifest.name} is meant for model {manifest.model}, served is {self._bundle.model}"
            event("serving_another_model", level=logging.WARNING, message=models)
        if self._runtime is None:
            self._runtime = _warm(self._bundle, self._settings)
        return self._runtime


class BundleFolder:
    """Of a folder of bundles the one that a generation names as its model.

    A bundle is loaded once for all generations that are held of it, and given up with the last of them.

    Args:
        path: a folder of bundle directories; it is looked into whenever a model is needed that is not loaded.
        settings: what encodes queries.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path, self._settings = path, settings
        self._loaded: weakref.WeakValueDictionary[str, Runtime] = weakref.WeakValueDictionary()

    def runtime(self, manifest: Manifest) -> Runtime:
        """See `Bundles`."""
        runtime = self._loaded.get(manifest.model)
        if runtime is None:
            bundle = Bundle.of_model(self._path, manifest.model)
            require_match(manifest, bundle)
            runtime = self._loaded[manifest.model] = _warm(bundle, self._settings)
        require_match(manifest, runtime.bundle)
        return runtime


def require_match(manifest: Manifest, bundle: Bundle) -> None:
    """Raises MismatchError unless the bundle's embeddings may be crossed with the generation's."""
    if (manifest.fingerprint, manifest.dimension) != (bundle.fingerprint, bundle.dimension):
        raise MismatchError(
            f"generation {manifest.name} has fingerprint {manifest.fingerprint}, bundle {bundle.path} has "
            f"{bundle.fingerprint}: their embeddings must not be crossed; refresh the store with this bundle, or serve "
            "the one that the store was made with"
        )


def _warm(bundle: Bundle, settings: Settings) -> Runtime:
    if settings.engine == "auto":
        choice, why = kept(bundle, settings.tuning or default_folder())
        engine, threads = (choice.engine, choice.threads) if choice else ("float32", 1)
    else:
        engine, threads, why = settings.engine, 1, "set"
    threads = settings.threads or threads
    runtime = Runtime(bundle, towers=("query",), threads=threads, engine=engine)
    for query in _WARM_QUERIES:
        runtime.encode([query])
    event("bundle_opened", model=bundle.model, engine=engine, threads=threads, why=why)
    return runtime
