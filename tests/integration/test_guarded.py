"""Both servers as operators guard them: real processes with certificates and tokens, and settings that are refused."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

import grpc
import pytest

from tests.servers import Server, refresh, running, twinbert, write_documents
from tests.serving_fake import Certified
from twinbert.client import Document, EncoderClient, ScorerClient, Task, tls_credentials
from twinbert.errors import RemoteError

READ, WRITE = "r" * 32, "w" * 32
PRIVATE = "zyzzyva"  # in every query, document and id


@pytest.fixture(scope="module")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    refresh(tiny_bundle, folder / "store", write_documents(folder / "documents.jsonl", {"a": "red shoe"}))
    return folder / "store"


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    made = Certified(tmp_path_factory.mktemp("certified"))
    made.issue("server")
    (made.folder / "tokens").write_text(f"ranker read {READ}\nnightly write {WRITE}\n")
    return made


def guard(certified: Certified) -> list[str]:
    folder = certified.folder
    files = {"--tls-cert": "server.pem", "--tls-key": "server.key", "--tokens": "tokens"}
    return [word for option, name in files.items() for word in (option, str(folder / name))]


def where(server: Server) -> str:
    return f"localhost:{server.address.rpartition(':')[2]}"


def test_a_scorer_beyond_loopback_answers_over_tls_to_those_with_a_token(
    tiny_bundle: Path, store: Path, certified: Certified
) -> None:
    """Its clients score with certificate and token; without a token, or with one that may not read, they do not."""
    credentials = tls_credentials(ca=certified.ca)
    with running("serve", tiny_bundle, store, *guard(certified), "--address", "0.0.0.0:0") as server:
        assert server.log[-1]["callers"] == "a token, over TLS"
        with ScorerClient(where(server), credentials=credentials, token=READ) as client:
            assert client.score(Task("shoe", ["a"]), timeout=30).results[0].found.all()
        for token, code in ((None, "UNAUTHENTICATED"), (WRITE, "PERMISSION_DENIED")):
            with ScorerClient(where(server), credentials=credentials, token=token) as client:
                with pytest.raises(RemoteError) as caught:
                    client.describe(timeout=30)
                assert caught.value.code == code
        assert server.metrics()['twinbert_rpc_refused_total{method="Describe",reason="forbidden"}'] == 1


def test_who_may_only_read_cannot_change_the_store(tiny_bundle: Path, tmp_path: Path, certified: Certified) -> None:
    """Refresh needs the right to write: without it nothing is published, nor the store's lock taken."""
    store, credentials = tmp_path / "store", tls_credentials(ca=certified.ca)
    with running("encoder", tiny_bundle, store, *guard(certified)) as server:
        with EncoderClient(where(server), credentials=credentials, token=READ) as client:
            assert client.encode(["red shoe"], "document", timeout=30).model
            with (store / "LOCK").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # whoever tries to take it hears of that
                with pytest.raises(RemoteError) as caught:
                    list(client.refresh([Document("a", "red shoe")]))
            assert caught.value.code == "PERMISSION_DENIED"
            assert not (store / "CURRENT").exists()
        with EncoderClient(where(server), credentials=credentials, token=WRITE) as client:
            *_, last = client.refresh([Document("a", "red shoe")])
            assert last.generation == (store / "CURRENT").read_text().strip()
        assert server.wait_for("refresh_published")["caller"] == "nightly"


@pytest.mark.parametrize("options", [(), ("--log-requests", "all"), ("--log-requests", "all", "--log-texts")])
def test_the_log_has_texts_only_when_asked(tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Of requests that are answered, refused and rejected, neither query nor document nor id is in the logs."""
    store = tmp_path / "store"
    with running("encoder", tiny_bundle, store, *options) as encoder, EncoderClient(encoder.address) as client:
        documents = [Document(PRIVATE, f"red {PRIVATE}"), Document(f"{PRIVATE}2", ""), Document("b", PRIVATE)]
        list(client.refresh(documents))
        client.encode([PRIVATE], "query", timeout=30)
        with contextlib.suppress(RemoteError):
            client.encode([PRIVATE, ""], "query", timeout=30)
    with running("serve", tiny_bundle, store, *options) as scorer, ScorerClient(scorer.address) as client:
        client.score(Task(PRIVATE, [PRIVATE, f"{PRIVATE}3"]), timeout=30)
        client.retrieve(PRIVATE, timeout=30)
        for wrong in (Task(f"{PRIVATE} " * 600, ["b"]), Task(PRIVATE, [PRIVATE * 100]), Task(PRIVATE, [7])):
            with pytest.raises(RemoteError):
                client.score(wrong, timeout=30)
    logged = json.dumps([*encoder.log, *scorer.log])
    assert (PRIVATE in logged) == ("--log-texts" in options)


def test_limits_that_are_set_hold(tiny_bundle: Path, store: Path) -> None:
    """Tasks, candidates, ids, queries, hits and texts: at the limit a request is answered, beyond it refused."""
    limits = {"tasks": 2, "candidates": 3, "id-bytes": 4, "query-bytes": 5, "hits": 1}
    options = [word for name, most in limits.items() for word in (f"--max-{name}", str(most))]
    with running("serve", tiny_bundle, store, *options) as server, ScorerClient(server.address) as client:
        client.score([Task("12345", ["1234", "a"]), Task("b", ["a"])], timeout=30)
        client.retrieve("b", 1, timeout=30)
        beyond = {
            "at most 3": [Task("a", ["a"] * 4)],
            "1 to 2 tasks": [Task("a", ["a"])] * 3,
            "an id has 1 to 4": [Task("a", ["12345"])],
            "at most 5": [Task("123456", ["a"])],
        }
        for said, tasks in beyond.items():
            with pytest.raises(RemoteError, match=said):
                client.score(tasks, timeout=30)
        with pytest.raises(RemoteError, match="at most 1 hits"):
            client.retrieve("b", 2, timeout=30)
    with running("encoder", tiny_bundle, store, "--max-texts", "1") as server, EncoderClient(server.address) as client:
        client.encode(["a"], "query", timeout=30)
        with pytest.raises(RemoteError, match="give 1 to 1"):
            client.encode(["a", "b"], "query", timeout=30)


def refused(command: str, bundle: Path, store: Path, *options: str) -> str:
    """The one line that a server says which does not start."""
    words = [command, "--bundle", str(bundle), "--store", str(store), "--address", "127.0.0.1:0", "--metrics-port", "0"]
    done = twinbert(*words, *options)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    return lines[0]


BAD_GUARDS: dict[str, tuple[list[str], str]] = {
    "key without certificate": (["--tls-key", "server.key"], "needs both --tls-cert and --tls-key"),
    "authority without certificate": (["--tls-client-ca", "ca.pem"], "needs both --tls-cert and --tls-key"),
    "missing certificate": (["--tls-cert", "none.pem", "--tls-key", "server.key"], "none.pem cannot be read"),
    "certificate as key": (["--tls-cert", "server.pem", "--tls-key", "server.pem"], "holds no private key"),
    "missing tokens": (["--tokens", "none"], "none cannot be read: No such file"),
    "empty tokens": (["--tokens", "empty"], "holds no token"),
    "folder of tokens": (["--tokens", "."], "cannot be read: Is a directory"),
    "plain text beyond loopback": (["--address", "0.0.0.0:0"], "calls would be plain text: give --tls-cert"),
    "plain text to a name": (["--address", "example.test:50051"], "or say --insecure"),
    "anybody beyond loopback": (
        ["--address", "[::]:0", "--tls-cert", "server.pem", "--tls-key", "server.key"],
        "anybody could call: give --tokens or --tls-client-ca",
    ),
    "collector without scheme": (["--otlp-endpoint", "localhost:4317"], "correct --otlp-endpoint"),
    "nonsense as host of metrics": (["--metrics-host", "no such host"], "metrics cannot be served"),
    "no host of metrics": (["--metrics-host", ""], "--metrics-host is empty"),
}


@pytest.mark.parametrize(("server", "case"), [*(("serve", case) for case in BAD_GUARDS), ("encoder", "empty tokens")])
def test_a_guard_that_is_no_good_is_one_line_and_nothing_is_started(
    tiny_bundle: Path, store: Path, certified: Certified, server: str, case: str
) -> None:
    """Exit code 2, and a line that says what to correct."""
    (certified.folder / "empty").touch()
    options, said = BAD_GUARDS[case]
    here = [
        str(certified.folder / word) if (word and (certified.folder / word).exists()) or "none" in word else word
        for word in options
    ]
    assert said in refused(server, tiny_bundle, store, *here)


def test_plain_text_beyond_loopback_is_there_for_those_who_say_so(tiny_bundle: Path, store: Path) -> None:
    """--insecure is the explicit word, and the log says what it means."""
    with running("serve", tiny_bundle, store, "--address", "0.0.0.0:0", "--insecure") as server:
        assert server.log[-1]["callers"] == "anybody, over plain text"
        with grpc.insecure_channel(where(server)) as channel:
            grpc.channel_ready_future(channel).result(60)
