"""Writes the Grafana dashboard: `python deploy/grafana/dashboard.py > deploy/grafana/twinbert.json`.

Each row of ROWS is a row of panels. A test holds every metric and label against what the servers export, and
twinbert.json against what this program writes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

# What the reader of the dashboard chose.
SCORER = 'job=~"$scorer",instance=~"$instance"'
ENCODER = 'job=~"$encoder",instance=~"$instance"'
EITHER = 'job=~"$scorer|$encoder",instance=~"$instance"'

_WIDTH, _HEIGHT = 24, 8


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel: its title, its queries by legend, the unit and the least value of its axis, and what it says."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    least: float | None = 0


def rate(metric: str, labels: str, *matchers: str) -> str:
    """The rate of a counter of these servers, by series."""
    return f"rate({metric}{{{','.join([labels, *matchers])}}}[$__rate_interval])"


def total(metric: str, labels: str, *matchers: str, by: str = "") -> str:
    """The rate of a counter of all servers together, by these labels."""
    return f"sum{f' by ({by}) ' if by else ''}({rate(metric, labels, *matchers)})"


def mean(histogram: str, labels: str, by: str = "") -> str:
    """The mean of a histogram, by these labels."""
    return f"{total(f'{histogram}_sum', labels, by=by)} / {total(f'{histogram}_count', labels, by=by)}"


def quantiles(histogram: str, labels: str, *matchers: str) -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram."""
    buckets = total(f"{histogram}_bucket", labels, *matchers, by="le")
    return {f"p{q}": f"histogram_quantile({q / 100}, {buckets})" for q in (50, 95, 99)}


def last_hour(counter: str, labels: str, by: str) -> str:
    """How much a counter of all servers together grew in the last hour, by these labels."""
    return f"sum by ({by}) (increase({counter}{{{labels}}}[1h]))"


ROWS: dict[str, list[Panel]] = {
    "Score": [
        Panel(
            title="Requests by status",
            queries={"{{code}}": total("twinbert_rpc_duration_seconds_count", SCORER, 'method="Score"', by="code")},
            unit="reqps",
        ),
        Panel(
            title="Latency at the server",
            queries=quantiles("twinbert_rpc_duration_seconds", SCORER, 'method="Score"', 'code="OK"'),
            unit="s",
            text="From the arrival of a request's message to its response.",
        ),
        Panel(
            title="Budget being burnt (1: it lasts 30 days)",
            queries={
                "errors, 1 h": "twinbert:score_errors:ratio_rate1h / 0.001",
                "errors, 6 h": "twinbert:score_errors:ratio_rate6h / 0.001",
                "latency, 1 h": "twinbert:score_slow:ratio_rate1h / 0.01",
                "latency, 6 h": "twinbert:score_slow:ratio_rate6h / 0.01",
            },
            text="Objectives and thresholds are in deploy/prometheus/twinbert.rules.yml.",
        ),
    ],
    "Where the time goes": [
        Panel(
            title="Stages, mean",
            queries={"{{stage}}": mean("twinbert_stage_duration_seconds", SCORER, by="stage")},
            unit="s",
            text="queue of a query, tokenize and encode of a batch, lookup and cross of a Score, scan of a Retrieve.",
        ),
        Panel(
            title="Stages, 99th percentile",
            queries={
                "{{stage}}": "histogram_quantile(0.99, "
                f"{total('twinbert_stage_duration_seconds_bucket', SCORER, by='le, stage')})"
            },
            unit="s",
        ),
        Panel(
            title="Queries in a batch, and waiting for one",
            queries={
                "in a batch, mean": mean("twinbert_batch_queries", SCORER),
                "tokens in a batch, mean": mean("twinbert_batch_tokens", SCORER),
                "waiting": f"sum(twinbert_queue_depth{{{SCORER}}})",
            },
        ),
    ],
    "Load": [
        Panel(
            title="Requests being answered",
            queries={"{{job}} {{method}}": f"sum by (job, method) (twinbert_rpc_in_flight{{{EITHER}}})"},
        ),
        Panel(
            title="Refused without work",
            queries={"{{method}} {{reason}}": total("twinbert_rpc_refused_total", EITHER, by="method, reason")},
            unit="reqps",
            text="By what was scarce, the caller's deadline, or the caller.",
        ),
        Panel(
            title="Query cache",
            queries={
                "hits": total("twinbert_query_cache_hits_total", SCORER),
                "misses": total("twinbert_query_cache_misses_total", SCORER),
                "given up by their callers": total("twinbert_queries_dropped_total", SCORER),
                "cut to the tower's length": total("twinbert_truncated_queries_total", SCORER),
            },
            unit="reqps",
        ),
    ],
    "Candidates": [
        Panel(
            title="Candidates by status",
            queries={"{{status}}": total("twinbert_candidates_total", SCORER, by="status")},
            unit="cps",
        ),
        Panel(
            title="Candidates that are not there, by why",
            queries={"{{reason}}": total("twinbert_candidates_missed_total", SCORER, by="reason")},
            unit="cps",
        ),
        Panel(
            title="Age of the embeddings scored",
            queries=quantiles("twinbert_document_age_seconds", SCORER),
            unit="s",
            text="From a document's source time to the request that scored it.",
        ),
    ],
    "Generations": [
        Panel(
            title="Served now",
            queries={"{{instance}} {{generation}}": f"twinbert_generation_info{{{SCORER}}}"},
            text="All replicas should name one, but for the moments after a publish.",
        ),
        Panel(title="Age", queries={"{{instance}}": f"twinbert_generation_age_seconds{{{SCORER}}}"}, unit="s"),
        Panel(
            title="Refused, and swapped to",
            queries={
                "{{instance}} refuses: {{reason}}": f"twinbert_generation_refused{{{SCORER}}}",
                "swaps": total("twinbert_generation_swaps_total", SCORER),
            },
        ),
    ],
    "Refreshing": [
        Panel(
            title="Documents by what became of them",
            queries={"{{outcome}}": total("twinbert_encoder_documents_total", ENCODER, by="outcome")},
            unit="cps",
        ),
        Panel(
            title="Refreshes and compactions by how they ended",
            queries={
                "refresh {{outcome}}": last_hour("twinbert_encoder_refreshes_total", ENCODER, by="outcome"),
                "compaction {{outcome}}": last_hour("twinbert_encoder_compactions_total", ENCODER, by="outcome"),
            },
            text="In the hour before.",
        ),
        Panel(
            title="Refresh jobs: time since",
            queries={
                "{{store}}: last success": "time() - twinbert_refresh_last_success_timestamp_seconds",
                "{{store}}: newest document": "time() - twinbert_refresh_watermark_timestamp_seconds",
            },
            unit="s",
            text="Of those with a --metrics-file that node exporter reads.",
        ),
        Panel(
            title="Segments, and rows that are dead",
            queries={
                "segments": f"max(twinbert_encoder_segments{{{ENCODER}}})",
                "dead": f"max(twinbert_encoder_dead_row_ratio{{{ENCODER}}})",
            },
        ),
    ],
    "Processes": [
        Panel(
            title="Taking requests",
            queries={"{{job}} {{instance}}": f"twinbert_serving{{{EITHER}}}"},
            text="0 while a server starts, drains or hangs.",
        ),
        Panel(
            title="Memory",
            queries={"{{job}} {{instance}}": f"process_resident_memory_bytes{{{EITHER}}}"},
            unit="bytes",
            text="The pages of mapped segments count as long as they are in memory.",
        ),
        Panel(title="Cores", queries={"{{job}} {{instance}}": rate("process_cpu_seconds_total", EITHER)}),
        Panel(
            title="Guard",
            queries={
                "{{instance}} keeps an old {{what}}": f"twinbert_reload_failed{{{EITHER}}}",
                "{{instance}} certificate, days left": "(twinbert_tls_certificate_expiry_timestamp_seconds"
                f"{{{EITHER}}} - time()) / 86400",
            },
            text="Below zero: this server has no certificate.",
            least=None,
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": _place(0, top, _WIDTH, 1), "id": len(panels) + 1})
        width = _WIDTH // len(row)
        for place, panel in enumerate(row):
            position = _place(place * width, top + 1, width, _HEIGHT)
            panels.append(_panel(panel, position, len(panels) + 1))
        top += 1 + _HEIGHT
    return {
        "title": "TwinBERT",
        "uid": "twinbert",
        "tags": ["twinbert"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("scorer", "label_values(twinbert_queue_depth, job)"),
                _variable("encoder", "label_values(twinbert_encoder_segments, job)"),
                _variable("instance", "label_values(twinbert_build_info, instance)"),
            ]
        },
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, position: dict[str, int], number: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + place), "datasource": source, "expr": expression, "legendFormat": legend}
        for place, (legend, expression) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": position,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": panel.least}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
