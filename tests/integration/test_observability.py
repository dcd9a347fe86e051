"""Rules, dashboard and runbook against what the servers really export."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.prometheus import RULES, alerts, node_exporter, prometheus, rules
from tests.promql import Selector, grouped_by, selectors
from tests.servers import Server, refresh, running, write_documents
from twinbert.client import Document, EncoderClient, ScorerClient, Task

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TESTS = ("twinbert.test.yml", "twinbert.days.test.yml")
RUNBOOK = DEPLOY.parent / "docs" / "runbook.md"

# Labels that Prometheus adds to every series.
_ADDED = {"job", "instance"}

Series = dict[str, list[dict[str, str]]]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("prometheus-node-exporter")),
    reason="prometheus or its node exporter is not installed",
)


def queries() -> list[Any]:
    """Every expression of rules and dashboard, with where it stands and the labels that its text names."""
    shown = [(f"rule {rule.get('alert') or rule['record']}", rule["expr"], _named(rule)) for rule in rules()]
    for panel in json.loads((DEPLOY / "grafana" / "twinbert.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            shown.append((f"panel {panel['title']} {target['refId']}", _chosen(target["expr"]), legend))
    return [pytest.param(expression, labels, id=where) for where, expression, labels in shown]


def _named(rule: Mapping[str, Any]) -> set[str]:
    return set(re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))))


def _chosen(expression: str) -> str:
    """As Grafana sends it, with all servers chosen."""
    return re.sub(r"\$(scorer|encoder|instance)\b", ".+", expression).replace("$__rate_interval", "10s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is, and what the refresh that made it left for node exporter."""
    return tmp_path_factory.mktemp("observed")


@pytest.fixture(scope="module")
def servers(tiny_bundle: Path, folder: Path) -> Iterator[tuple[Server, Server]]:
    """A scorer and an encoder that have each done something."""
    store, documents = folder / "store", write_documents(folder / "d.jsonl", {"a": "red shoe", "b": "blue boot"})
    refresh(tiny_bundle, store, documents, "--metrics-file", str(folder / "refresh.prom"))
    with running("serve", tiny_bundle, store) as scorer, running("encoder", tiny_bundle, store) as encoder:
        with EncoderClient(encoder.address) as client:
            list(client.refresh([Document("a", "red shoe"), Document("b", "a blue boot")]))
        work(scorer, encoder)
        yield scorer, encoder


def work(scorer: Server, encoder: Server, query: str = "shoe") -> None:
    """A little of everything; a query that was not asked before is encoded."""
    with ScorerClient(scorer.address) as client:
        client.score(Task(query, ["a", "none"]), timeout=60)
        client.retrieve("a shoe", timeout=60)
    with EncoderClient(encoder.address) as client:
        client.encode(["shoe"], "query", timeout=60)


@pytest.fixture(scope="module")
def exported(servers: tuple[Server, Server], folder: Path) -> Series:
    """The labels of all series of both servers and of a refresh, by metric, and those that Prometheus makes itself."""
    found: Series = {"up": [{}]}
    texts = [(folder / "refresh.prom").read_text()]
    for server in servers:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as response:
            texts.append(response.read().decode())
    for family in text_string_to_metric_families("".join(texts)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = [dict.fromkeys(grouped_by(rule["expr"]) - _ADDED, "")]
    return found


@pytest.mark.parametrize(("expression", "named"), queries())
def test_every_query_is_about_what_is_exported(exported: Series, expression: str, named: set[str]) -> None:
    """Each metric, each label and each value that a rule or a panel selects is there, also before the first request."""
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.metric in exported
        for one in selector.alternatives():
            without_added = Selector(one.metric, tuple(m for m in one.matchers if m[0] not in _ADDED))
            assert any(map(without_added.matches, exported[one.metric])), one
    labels = _ADDED.union(*(labels for selector in found for labels in exported[selector.metric]))
    assert grouped_by(expression) <= labels
    assert named <= (grouped_by(expression) or labels)


def test_the_dashboard_is_what_its_program_writes() -> None:
    """twinbert.json is never edited by hand."""
    written = subprocess.run([sys.executable, DEPLOY / "grafana" / "dashboard.py"], capture_output=True, check=True)
    assert written.stdout == (DEPLOY / "grafana" / "twinbert.json").read_bytes()


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [("check", "rules", RULES.name), ("test", "rules", *TESTS), ("check", "config", "prometheus.yml")],
)
def test_the_rules_do_what_they_say(words: tuple[str, ...]) -> None:
    """promtool finds them sound, and every alert fires and keeps still as its tests say."""
    done = subprocess.run(["promtool", *words], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_shown_firing_and_keeping_still() -> None:
    """The rules' tests have both for each alert."""
    shown = [
        (case["alertname"], bool(case["exp_alerts"]))
        for file in TESTS
        for test in yaml.safe_load((RULES.parent / file).read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    quiet_elsewhere = {"TwinbertScoreLatencyBurnSlow"}  # what keeps it still is what keeps its sibling for errors still
    assert {name for name, fires in shown if fires} == set(alerts())
    assert {name for name, fires in shown if not fires} | quiet_elsewhere == set(alerts())


def test_every_alert_has_its_section_in_the_runbook_and_no_other_does() -> None:
    """And each section says what the alert means, how to see it and what to do."""
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^#|\Z)", RUNBOOK.read_text(), re.M | re.S))
    assert sorted(sections) == sorted(alerts())
    for name, section in sections.items():
        for part in ("**Means.**", "**See.**", "**Do.**"):
            assert part in section, name


@needs_prometheus
def test_no_panel_is_empty(servers: tuple[Server, Server], folder: Path, tmp_path: Path) -> None:
    """A real Prometheus that scrapes both servers under a little load, and the host of a refresh job, has a number for
    every query of the dashboard.
    """
    waiting = {one.id: one.values[0] for one in queries() if str(one.id).startswith("panel")}
    assert waiting
    scorer, encoder = servers
    targets = {"twinbert-scorer": [scorer.metrics_port], "twinbert-encoder": [encoder.metrics_port]}
    # The group of the objectives has a pace of its own, which is for production.
    text = RULES.read_text().replace("interval: 30s", "interval: 1s")
    with node_exporter(folder) as port, prometheus({**targets, "node": [port]}, text, tmp_path) as ask:
        for number in range(500):
            work(*servers, f"shoe {number}")
            waiting = {where: expression for where, expression in waiting.items() if not has_number(ask(expression))}
            if not waiting:
                break
        assert waiting == {}


def has_number(result: list[Any]) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in result)
