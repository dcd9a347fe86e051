"""`twinbert store …` on real stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_cases import (
    FINGERPRINT,
    MODEL,
    Document,
    data_file,
    delta,
    documents,
    flip,
    forge,
    holds,
    interrupt,
    refresh,
    three_generations,
    tree,
    writer,
)

from store.format import BUILDING, CURRENT, GENERATIONS
from store.store import Store
from twinbert.cli import main

ROOT = Path(__file__).parents[2]
IN_PROCESS = (sys.executable, "-c", "import sys; from twinbert.cli import main; sys.exit(main())", "store")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside."""
    for name in [name for name in os.environ if name.startswith("TWINBERT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    return three_generations(tmp_path / "store")


def run(capsys: pytest.CaptureFixture[str], command: str, *options: object) -> list[str]:
    """The lines that a command prints, when it succeeds."""
    assert main(["store", command, *map(str, options)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], command: str, *options: object) -> str:
    """The one line that a command complains with, exit code 2."""
    assert main(["store", command, *map(str, options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("twinbert: ")
    return line


def in_process(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that has run in a process of its own."""
    command = [*IN_PROCESS, *arguments, "--store", str(store.path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_list(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Generations are listed oldest first, a line of cells separated by tabs each, the current one marked."""
    heading, *lines = [line.split("\t") for line in run(capsys, "list", "--store", store.path)]
    assert [line[1] for line in lines] == store.generations()
    assert [bool(line[0].strip()) for line in lines] == [False, False, True]
    assert [dict(zip(heading, line, strict=True))["documents"] for line in lines] == ["3", "4", "5"]


def test_list_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json every generation is an object with what its manifest says."""
    listed = json.loads("\n".join(run(capsys, "list", "--store", store.path, "--json")))
    assert [one["name"] for one in listed] == store.generations()
    assert [one["current"] for one in listed] == [False, False, True]
    assert [one["parent"] for one in listed] == [None, *store.generations()[:2]]
    for one, name in zip(listed, store.generations(), strict=True):
        assert one["bytes"] == data_file(store, name).stat().st_size
        assert (one["model"], one["fingerprint"], one["problem"]) == (MODEL, FINGERPRINT, None)
        assert (one["encoding"], one["id_type"], one["quality"]) == ("float32", "string", {})
        assert one["created_ms"] == store.manifest(name).created_ms


def test_list_with_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A generation that cannot be read is listed with the reason, in both forms."""
    path = store.path / GENERATIONS / f"{store.generations()[1]}.json"
    path.write_bytes(b"")
    lines = run(capsys, "list", "--store", store.path)
    assert "unreadable: " in lines[2]
    assert str(path) in lines[2]
    listed = json.loads("\n".join(run(capsys, "list", "--store", store.path, "--json")))
    assert str(path) in listed[1]["problem"]


def test_verify(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound store is ok line by line; of a damaged one every line is printed too, and the command fails."""
    lines = run(capsys, "verify", "--store", store.path)
    assert lines == [f"{name}  ok" for name in ("CURRENT", *store.generations())]
    first, second, _ = store.generations()
    flip(data_file(store, second), 6000)
    assert main(["store", "verify", "--store", str(store.path)]) == 2
    printed = capsys.readouterr()
    assert f"{first}  ok" in printed.out
    assert f"{second}  {data_file(store, second)} is not what was written" in printed.out
    assert printed.err.startswith("twinbert: ")
    assert "1 of what was checked is damaged" in printed.err
    assert run(capsys, "verify", "--store", store.path, "--generation", first) == [f"{first}  ok"]
    assert "1 of what was checked" in refused(
        capsys, "verify", "--store", store.path, "--generation", "000009-00000000"
    )


def test_verify_what_a_newer_version_wrote(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not called damaged: a refresh would be no remedy, another version is."""
    forge(store, lambda fields: fields.update(format=2))
    assert refused(capsys, "verify", "--store", store.path).endswith("this version wrote to `twinbert store rollback`")
    assert "damaged" not in "\n".join(run(capsys, "list", "--store", store.path))


def test_verify_a_new_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store in which nothing was published yet is not damaged: there is nothing to verify."""
    Store(tmp_path).create()
    (line,) = run(capsys, "verify", "--store", tmp_path)
    assert line == f"{tmp_path}: nothing was published yet, so there is nothing to verify"


def test_rollback(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Rolling back goes to the parent or to the generation that is named, and says from where to where."""
    first, second, third = store.generations()
    (line,) = run(capsys, "rollback", "--store", store.path)
    assert line == f"{store.path}: current is {second}, it was {third}"
    run(capsys, "rollback", "--store", store.path, first)
    assert store.current() == first
    assert "no generation before" in refused(capsys, "rollback", "--store", store.path)
    assert "has no generation" in refused(capsys, "rollback", "--store", store.path, "../x")
    assert store.current() == first


def test_rollback_from_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged CURRENT is mended with what verifies, and the line says what it was."""
    _, _, third = store.generations()
    (store.path / CURRENT).write_bytes(b"")
    (line,) = run(capsys, "rollback", "--store", store.path)
    assert line == f"{store.path}: current is {third}, it was damaged or missing"
    assert holds(store, documents(5))


def test_gc(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run says what a collection then removes, by name and in all; at least one generation has to stay."""
    first, second, third = store.generations()
    interrupt(store, documents(6))
    (build,) = (store.path / BUILDING).iterdir()
    for path in (*build.iterdir(), build):
        os.utime(path, (0, 0))
    before = tree(store.path)
    gone = [data_file(store, first), store.path / GENERATIONS / f"{first}.json", *build.iterdir()]
    expected = [
        f"removed generation {first}",
        f"removed segment {data_file(store, first).parent.name}",
        f"removed build {build.name}",
        f"{store.path}: removed 1 generations, 1 segments, 1 builds: {sum(p.stat().st_size for p in gone):,} bytes",
    ]
    would = run(capsys, "gc", "--store", store.path, "--keep", 1, "--dry-run")
    assert would == [line.replace("removed", "would remove") for line in expected]
    assert tree(store.path) == before
    assert run(capsys, "gc", "--store", store.path, "--keep", 1) == expected
    assert store.generations() == [second, third]
    assert "--keep" in refused(capsys, "gc", "--store", store.path, "--keep", 0)


def test_compact(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Compacting merges what deltas made, all or the newest, and says what became of what; the list shows segments."""
    third = store.current()
    for number in range(3):
        delta(store, [Document(f"document-{number}", "other")])
    before = store.current()
    (line,) = run(capsys, "compact", "--store", store.path, "--newest", 2)
    middle = store.current()
    assert line == (
        f"{store.path}: current is {middle}, it was {before}: 2 segments became one of 2 documents, "
        "0 dead rows are left out"
    )
    (line,) = run(capsys, "compact", "--store", store.path)
    assert line.endswith("3 segments became one of 5 documents, 3 dead rows are left out")
    heading, *lines = [line.split("\t") for line in run(capsys, "list", "--store", store.path)]
    segments = [dict(zip(heading, line, strict=True))["segments"] for line in lines]
    assert segments == ["1", "1", "1", "2", "3", "4", "3", "1"]
    listed = json.loads("\n".join(run(capsys, "list", "--store", store.path, "--json")))
    assert [(one["segments"], one["dead_share"]) for one in listed[-3:]] == [(4, 0.375), (3, 0.375), (1, 0.0)]
    (line,) = run(capsys, "compact", "--store", store.path)
    assert line == f"{store.path}: {store.current()} has one segment, there is nothing to merge"
    run(capsys, "rollback", third, "--store", store.path)
    assert holds(store, documents(5))


def test_pin_and_unpin(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A pinned generation is marked in the list and outlives collections; what is not there cannot be pinned."""
    first, second, third = store.generations()
    assert run(capsys, "pin", first, "--store", store.path) == [f"{store.path}: {first} is pinned"]
    run(capsys, "gc", "--store", store.path, "--keep", 1)
    assert store.generations() == [first, second, third]
    marks = [line.split("\t")[0] for line in run(capsys, "list", "--store", store.path)[1:]]
    assert marks == ["*", "", "→"]
    run(capsys, "unpin", first, "--store", store.path)
    run(capsys, "gc", "--store", store.path, "--keep", 1)
    assert store.generations() == [second, third]
    assert "has no generation" in refused(capsys, "pin", first, "--store", store.path)
    assert "pinned are: none" in refused(capsys, "unpin", second, "--store", store.path)


def test_copy(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy makes the other store, says what is current there, and moves nothing the second time."""
    there = Store(tmp_path / "there")
    size = data_file(store).stat().st_size
    (line,) = run(capsys, "copy", "--store", store.path, there.path)
    assert line == f"{there.path}: current is {store.current()}, {size:,} bytes copied"
    assert holds(there, documents(5))
    (line,) = run(capsys, "copy", "--store", store.path, there.path)
    assert line.endswith(", 0 bytes copied")
    first = store.generations()[0]
    run(capsys, "copy", "--store", store.path, there.path, "--generation", first)
    assert there.current() == first


def test_no_target_from_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where to roll back or copy to is only ever said on the command line."""
    first, second, third = store.generations()
    for name in ("TO", "DESTINATION", "GENERATION"):
        monkeypatch.setenv(f"TWINBERT_{name}", first if name == "GENERATION" else str(tmp_path / "there"))
    assert main(["store", "copy", "--store", str(store.path)]) == 2
    assert not (tmp_path / "there").exists()
    assert main(["store", "rollback", "--store", str(store.path)]) == 0
    assert (store.current(), store.generations()) == (second, [first, second, third])


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("list", []),
        ("verify", []),
        ("rollback", []),
        ("pin", ["000001-00000000"]),
        ("unpin", ["000001-00000000"]),
        ("gc", []),
        ("compact", []),
        ("copy", ["x"]),
    ],
)
def test_no_store(command: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no store is said to be none, and is not made one."""
    for path in (tmp_path / "nowhere", tmp_path):
        assert "is not a store" in refused(capsys, command, "--store", path, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_running_refresh(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a refresh runs, what writes to the store is refused with its holder; what reads it, pins and rolls back is
    not.
    """
    with writer(store):
        name = store.current()
        for command, *options in (["gc"], ["gc", "--dry-run"], ["compact"]):
            assert f"process {os.getpid()} " in refused(capsys, command, "--store", store.path, *options)
        run(capsys, "pin", "--store", store.path, name)
        run(capsys, "rollback", "--store", store.path)
        for command in ("list", "verify"):
            assert in_process(store, command).returncode == 0
        assert in_process(store, "copy", str(tmp_path / "there")).returncode == 0


def test_an_interrupted_verification(tmp_path: Path) -> None:
    """An interrupt ends it within a file whose bytes would take half a minute, with one line and exit code 130."""
    store, size = Store(tmp_path / "store"), 1 << 36
    name = refresh(store, documents(3)).name
    os.truncate(data_file(store), size)
    forge(store, lambda fields: fields["segments"][0]["files"]["data.mdb"].update(size=size))
    (store.path / GENERATIONS / f"{name}.json").unlink()
    with subprocess.Popen(
        [*IN_PROCESS, "verify", "--store", str(store.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "CURRENT  ok\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "twinbert: interrupted\n")
        assert process.returncode == 130


def test_as_a_process(store: Store) -> None:
    """The command itself prints to standard output, complains on standard error, and exits with 0 or 2."""
    listed = in_process(store, "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert all(name in listed.stdout for name in store.generations())
    flip(data_file(store), 6000)
    damaged = in_process(store, "verify")
    assert damaged.returncode == 2
    assert len(damaged.stdout.splitlines()) == 4
    assert len(damaged.stderr.splitlines()) == 1
