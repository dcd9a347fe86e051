"""What the encoder exports. Every series is there, at zero, from the start; no label can grow without bound."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from encoder_server.progress import Progress
from store.manifest import Manifest
from twinbert.bundle import TOWERS
from twinbert.serving.metrics import RpcMetrics, new_registry

METHODS = ("Encode", "Refresh")
DOCUMENT_OUTCOMES = ("encoded", "reused", "deleted", "rejected", "duplicate")
COMPACTION_OUTCOMES = ("published", "superseded", "failed")
REFRESH_OUTCOMES = ("published", "refused", "failed", "abandoned")

# Seconds. A refresh that reuses every row takes seconds, a large corpus on a small machine a day.
_REFRESH_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)


class Metrics:
    """The encoder's metrics and their registry."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = new_registry()
        self.rpc = RpcMetrics(self.registry, METHODS)
        documents = Counter(
            "twinbert_encoder_documents",
            "Documents of refreshes, by what became of them; a duplicate may also have been encoded or reused.",
            ["outcome"],
            registry=self.registry,
        )
        self._documents = {outcome: documents.labels(outcome) for outcome in DOCUMENT_OUTCOMES}
        truncated = Counter(
            "twinbert_encoder_truncated",
            "Texts that were encoded and are longer than the tower reads, by tower.",
            ["tower"],
            registry=self.registry,
        )
        self.truncated = {tower: truncated.labels(tower) for tower in TOWERS}
        refreshes = Counter(
            "twinbert_encoder_refreshes",
            "Refreshes, by how they ended; refused: by the swap gate; abandoned: cancelled, or ended without commit.",
            ["outcome"],
            registry=self.registry,
        )
        self.refreshes = {outcome: refreshes.labels(outcome) for outcome in REFRESH_OUTCOMES}
        self.duration = Histogram(
            "twinbert_encoder_refresh_duration_seconds",
            "Duration of a refresh, however it ended.",
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        compactions = Counter(
            "twinbert_encoder_compactions",
            "Compactions, by how they ended; superseded: a full refresh or a rollback made them pointless.",
            ["outcome"],
            registry=self.registry,
        )
        self.compactions = {outcome: compactions.labels(outcome) for outcome in COMPACTION_OUTCOMES}
        self._segments = Gauge(
            "twinbert_encoder_segments",
            "Segments of the current generation; 0 while there is none.",
            registry=self.registry,
        )
        self._dead_share = Gauge(
            "twinbert_encoder_dead_row_ratio",
            "Share of the current generation's rows that were replaced or deleted.",
            registry=self.registry,
        )
        self._published = Gauge(
            "twinbert_encoder_last_publish_timestamp_seconds",
            "When the documents of the current generation were published; 0 while there is none.",
            registry=self.registry,
        )
        self._generation = Info(
            "twinbert_encoder_generation", "The current generation, whoever published it.", registry=self.registry
        )
        self._generation.info({"generation": "", "model": "", "fingerprint": ""})

    def count(self, before: Progress, now: Progress) -> None:
        """Counts what a refresh did between two snapshots of its progress."""
        self._documents["encoded"].inc(now.encoded - before.encoded)
        self._documents["reused"].inc(now.reused - before.reused)
        self._documents["deleted"].inc(now.deleted - before.deleted)
        self._documents["rejected"].inc(now.rejected - before.rejected)
        self._documents["duplicate"].inc(now.duplicates - before.duplicates)
        self.truncated["document"].inc(now.truncated - before.truncated)

    def set_generation(self, manifest: Manifest) -> None:
        """Shows which generation is current, and how far it is from being compact."""
        self._segments.set(len(manifest.segments))
        self._dead_share.set(manifest.dead_share)
        about = {"generation": manifest.name, "model": manifest.model, "fingerprint": manifest.fingerprint}
        self._generation.info(about)
        self._published.set(manifest.created_ms / 1000)
