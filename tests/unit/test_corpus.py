"""The demo's corpus, built from the Python that runs the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.corpus import python_api, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Id → text, as they stand in the file."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    count = write_corpus(path)
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == count
    texts = {document["id"]: document["text"] for document in documents}
    assert len(texts) == count
    return texts


def test_corpus_is_large_ordered_and_has_texts(corpus: dict[str, str]) -> None:
    """There are enough documents for a demo, in the order of their ids, each a name and a paragraph about it."""
    assert len(corpus) >= 5_000
    assert list(corpus) == sorted(corpus)
    for name, text in corpus.items():
        first, _, paragraph = text.partition("\n")
        assert first == name
        assert paragraph
        assert paragraph == " ".join(paragraph.split())


@pytest.mark.parametrize(
    ("name", "paragraph"),
    [
        ("json.loads", "Deserialize ``s`` (a ``str``, ``bytes`` or ``bytearray`` instance"),
        ("json.JSONDecoder", "Simple JSON"),  # defined in json.decoder
        ("pathlib.Path.glob", "Iterate over this subtree and yield all existing files"),
        ("os.path.join", "Join two or more pathname components"),  # defined in posixpath
        ("os.path.exists", "Test whether a path exists."),  # defined in genericpath
        ("collections.OrderedDict.move_to_end", "Move an existing element to the end"),
        ("collections.abc.Mapping.get", "D.get(k[,d])"),  # defined in _collections_abc
        ("decimal.Decimal.sqrt", "Return the square root of self."),  # defined in _pydecimal
        ("asyncio.gather", "Return a future aggregating results"),  # defined in asyncio.tasks
        ("numpy.linalg.norm", "Matrix or vector norm."),  # defined in numpy.linalg._linalg
        ("numpy.argsort", "Returns the indices that would sort an array."),  # defined in numpy._core.fromnumeric
        ("numpy.unique", "Find the unique elements of an array."),  # defined in numpy.lib._arraysetops_impl
        ("numpy.strings.upper", "Return an array with the elements converted to uppercase."),  # also numpy.char.upper
        ("numpy.array", "Create an array."),  # written in C
        ("numpy.ndarray.argmin", "Return indices of the minimum values along the given axis"),  # written in C
    ],
)
def test_known_names_are_found(corpus: dict[str, str], name: str, paragraph: str) -> None:
    """A name stands as users know it, wherever it is defined, with what its docstring begins with."""
    assert corpus[name].startswith(f"{name}\n{paragraph}")


def test_only_public_names_and_no_tests(corpus: dict[str, str]) -> None:
    """Nothing private, no test and no second name of the same thing is in the corpus."""
    for name in corpus:
        for part in name.split("."):
            assert not part.startswith("_")
            assert part not in {"test", "tests", "conftest"}
    assert not corpus.keys() & {
        "json.decoder.JSONDecoder",
        "asyncio.tasks.gather",
        "numpy.char.upper",
        "posixpath.join",
    }


def test_nothing_is_imported() -> None:
    """What the corpus tells of is not imported to make it."""
    program = "import sys, demo.corpus; demo.corpus.python_api(); print({'numpy', 'tkinter'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert process.stdout.decode().strip() == "set()"


def test_unreadable_sources_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no Python of this version, or not in its encoding, costs only itself."""
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"def f():\n    'caf\xe9'\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0")
    (tmp_path / "good.py").write_text(
        'class A:\n    """An A.\n\n    More."""\n    def f(self):\n        """An\n  F."""\n'
    )
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert python_api() == {"good.A": "An A.", "good.A.f": "An F."}
