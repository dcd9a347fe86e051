"""What is deployed, against the program: names, ports, probes and commands that would only fail in production."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import twinbert
from twinbert.cli import command

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS: dict[str, Any] = {
    one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "scorer.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
COMMANDS = command().commands


def parsed(server: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a server that is started with nothing but an environment."""
    known = {option.envvar for option in COMMANDS[server].params}
    assert {name for name in environment if name.startswith("TWINBERT_")} <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with COMMANDS[server].make_context(server, []) as context:
        settings: dict[str, Any] = context.params
    return settings


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(TWINBERT_\w+)=(\S+)", DOCKERFILE))


@pytest.mark.parametrize("name", ["scorer", "encoder"])
def test_the_composed_servers_have_settings_that_they_know(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable is an option's, every value passes, and the published port and the scraped one are theirs."""
    service = COMPOSE["services"][name]
    [server] = service["command"]
    settings = parsed(server, image_environment() | service["environment"], monkeypatch)
    assert service["ports"][0].endswith(f":{settings['address'].rpartition(':')[2]}")
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    [discovery] = next(job for job in scraped if job["job_name"] == f"twinbert-{name}")["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == ([name], settings["metrics_port"])
    mounted = {volume.rpartition(":/")[2].removesuffix(":ro") for volume in service["volumes"]}
    assert mounted == {str(settings[part]).lstrip("/") for part in ("bundle", "store")}


def test_the_pod_has_settings_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are options', ports are those that it listens on, and every file lies on a mounted volume; the server
    that has those of the image and the manifest misses nothing but what would be mounted.
    """
    environment = image_environment() | {one["name"]: one["value"] for one in CONTAINER["env"]}
    [server] = CONTAINER["args"]
    settings = parsed(server, environment, monkeypatch)
    ports = {one["name"]: one["containerPort"] for one in CONTAINER["ports"]}
    assert ports == {"grpc": int(settings["address"].rpartition(":")[2]), "metrics": settings["metrics_port"]}
    assert {one["name"]: one["port"] for one in MANIFESTS["Service"]["spec"]["ports"]} == ports
    mounts = [Path(one["mountPath"]) for one in CONTAINER["volumeMounts"]]
    files = [settings[name] for name in ("bundles", "store", "tls_cert", "tls_key", "tokens")]
    assert all(any(Path(file).is_relative_to(mount) for mount in mounts) for file in files)
    grace = POD["terminationGracePeriodSeconds"]
    assert grace > settings["drain_seconds"] + int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    started = twinbert(server, **environment)
    assert (started.returncode, started.stderr.count("\n")) == (2, 1)
    assert f"{settings['tls_cert']} cannot be read" in started.stderr


def test_probes_ask_what_is_served() -> None:
    """Paths and port of the probes are the metrics port's, and it is reached from outside the pod."""
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {one["port"] for one in probes.values()} == {"metrics"}
    assert {name: one["path"] for name, one in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert re.search(r'HEALTHCHECK .* CMD \["twinbert", "health"\]', DOCKERFILE)
    assert "health" in COMMANDS


def test_nothing_runs_as_root_or_can_write_to_its_root() -> None:
    """In the image, composed, and in Kubernetes; and the image has no torch."""
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == ["10001:10001"]
    assert "'.[serve,otel]'" in DOCKERFILE
    for service in COMPOSE["services"].values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert (POD["securityContext"]["runAsNonRoot"], POD["securityContext"]["runAsUser"]) == (True, 10001)
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_image_is_built_from_what_is_there() -> None:
    """Every source of COPY exists and is not ignored."""
    kept = set(re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M))
    sources = [source for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.M) for source in line.split()]
    assert set(sources) == kept
    assert all((DEPLOY.parent / source).exists() for source in sources)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_no_complaint() -> None:
    """The linter of Dockerfiles."""
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
