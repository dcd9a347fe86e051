"""What the scorer exports. Every series is there, at zero, from the start; no label can grow without bound."""

from __future__ import annotations

import time
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from scorer_server.ages import Ages
from store.reader import Generation
from twinbert.recorded import MissReason
from twinbert.serving.metrics import SECONDS, RpcMetrics, new_registry

STAGES = ("queue", "tokenize", "encode", "lookup", "cross", "scan")
STATUSES = ("ok", "not_found", "not_scored")
METHODS = ("Score", "Retrieve", "Describe")
RECORDINGS = ("requests", "misses")
RefusalReason = Literal["unverified", "format", "bundle", "mismatch", "documents_lost", "error"]


class Metrics:
    """The scorer's metrics and their registry."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = new_registry()
        self.rpc = RpcMetrics(self.registry, METHODS)
        stages = Histogram(
            "twinbert_stage_duration_seconds",
            "Duration of a stage: queue of a query, tokenize and encode of a batch, lookup and cross of a Score "
            "and scan of a Retrieve.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stages = {stage: stages.labels(stage) for stage in STAGES}
        self.queries = self._counter("twinbert_queries", "Queries of Score and Retrieve requests.")
        candidates = Counter(
            "twinbert_candidates", "Candidates of Score requests, by status.", ["status"], registry=self.registry
        )
        self.candidates = {status: candidates.labels(status) for status in STATUSES}
        missed = Counter(
            "twinbert_candidates_missed",
            "Candidates of Score requests that were not found, by why: never seen by this generation, or deleted.",
            ["reason"],
            registry=self.registry,
        )
        self.missed = {reason: missed.labels(reason) for reason in get_args(MissReason)}
        recorded = Counter(
            "twinbert_recorded_lines", "Lines recorded of requests and misses.", ["file"], registry=self.registry
        )
        self.recorded = {file: recorded.labels(file) for file in RECORDINGS}
        dropped = Counter(
            "twinbert_recordings_dropped",
            "Samples of requests and misses that could not be recorded: the disk was too slow, or failed.",
            ["file"],
            registry=self.registry,
        )
        self.dropped_recordings = {file: dropped.labels(file) for file in RECORDINGS}
        self.ages = Ages()
        self.registry.register(self.ages)
        self.truncated = self._counter("twinbert_truncated_queries", "Queries longer than the query tower reads.")
        self.cache_hits = self._counter("twinbert_query_cache_hits", "Queries answered from the cache.")
        self.cache_misses = self._counter(
            "twinbert_query_cache_misses",
            "Queries that were not in the cache; one that several requests wait for is encoded once.",
        )
        self.cache_bytes = self._gauge("twinbert_query_cache_bytes", "Memory that the query cache uses.")
        self.dropped = self._counter("twinbert_queries_dropped", "Queries given up by their callers before an engine.")
        self.queue_depth = self._gauge("twinbert_queue_depth", "Queries waiting for an engine.")
        self.batch_queries = Histogram(
            "twinbert_batch_queries",
            "Queries encoded in one batch.",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128),
            registry=self.registry,
        )
        self.batch_tokens = Histogram(
            "twinbert_batch_tokens",
            "Tokens encoded in one batch.",
            buckets=(4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
            registry=self.registry,
        )
        self.documents = self._gauge("twinbert_documents", "Documents of the current generation.")
        self.held = self._gauge("twinbert_generations_held", "Generations that a request may name.")
        self.swaps = self._counter("twinbert_generation_swaps", "Times that another generation became current.")
        refused = Gauge(
            "twinbert_generation_refused",
            "1 while CURRENT names a generation that this server refuses for this reason, else 0.",
            ["reason"],
            registry=self.registry,
        )
        self.refused = {reason: refused.labels(reason) for reason in get_args(RefusalReason)}
        self._generation = Info(
            "twinbert_generation", "The current generation, model and kind of engine.", registry=self.registry
        )
        self._created = self._gauge(
            "twinbert_generation_created_timestamp_seconds",
            "When the documents of the current generation were published.",
        )
        self._age = self._gauge("twinbert_generation_age_seconds", "Time since the current generation was published.")

    def set_current(self, generation: Generation, model: str, engine: str, held: int) -> None:
        """Shows which generation is current, and what serves it."""
        manifest = generation.manifest
        self._generation.info(
            {
                "generation": generation.name,
                "model": model,
                "fingerprint": manifest.fingerprint,
                "engine": engine,
            }
        )
        created = manifest.created_ms / 1000
        self._created.set(created)
        self._age.set_function(lambda: max(0.0, time.time() - created))
        self.documents.set(manifest.documents)
        self.held.set(held)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
