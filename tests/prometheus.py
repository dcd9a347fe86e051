"""Our rules, and a real Prometheus that looks at real servers."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "twinbert.rules.yml"

Ask = Callable[[str], list[Any]]


def rules() -> list[dict[str, Any]]:
    """Recording and alerting rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    """The names of the alerts."""
    return [rule["alert"] for rule in rules() if "alert" in rule]


def free_port() -> int:
    """A port that nobody listened on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def prometheus(targets: Mapping[str, Sequence[int]], rules: str, folder: Path) -> Iterator[Ask]:
    """Looks at metrics ports, by job, every second; gives a function that evaluates a query."""
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        for job, ports in targets.items()
    ]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": every, "rule_files": ["rules.yml"], "scrape_configs": jobs})
    )
    address = f"127.0.0.1:{free_port()}"
    files = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}")

    def ask(query: str) -> list[Any]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                result: list[Any] = json.load(response)["data"]["result"]
        except urllib.error.URLError:  # it is still starting
            assert process.poll() is None
            return []
        return result

    with _running("prometheus", *files, f"--web.listen-address={address}") as process:
        yield ask


@contextlib.contextmanager
def node_exporter(folder: Path) -> Iterator[int]:
    """Exports the *.prom files of a folder, and nothing else of the host; gives the port."""
    port = free_port()
    collector = ("--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}")
    with _running("prometheus-node-exporter", *collector, f"--web.listen-address=127.0.0.1:{port}"):
        yield port


@contextlib.contextmanager
def _running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
