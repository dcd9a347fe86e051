"""A corpus from the Python on this machine: what the standard library and numpy say of their public names.

Every public function, class and method with a docstring is a document: its id is the shortest qualified name that it
has, its text that name and, on the next line, the docstring's first paragraph. Sources are parsed and nothing is
imported; what is written in C has no docstring there, save what numpy adds to it by `add_newdoc`.

    python -m demo.corpus FILE     writes it as JSON Lines: {"id": "json.dumps", "text": …}
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Tests, applications that happen to lie in the library, and the paths of another system.
_LEFT_OUT = {"test", "tests", "idle_test", "conftest", "idlelib", "lib2to3", "turtledemo", "ntpath"}
# Modules that stand under another name, some only while Python runs; and one whose functions os.path passes on.
_KNOWN_AS = {"posixpath": "os.path", "_collections_abc": "collections.abc", "_pydecimal": "decimal"}
_INTERNAL = {"genericpath"}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*->.*)?(\s*--)?", re.DOTALL)


def write_corpus(path: Path) -> int:
    """Write the corpus as JSON Lines in the order of its ids; returns how many documents it has."""
    documents = sorted(python_api().items())
    with path.open("w", encoding="utf-8") as file:
        for name, paragraph in documents:
            file.write(json.dumps({"id": name, "text": f"{name}\n{paragraph}"}, ensure_ascii=False) + "\n")
    return len(documents)


def python_api() -> dict[str, str]:
    """Qualified name → first paragraph of the docstring, for the standard library and numpy."""
    modules = {module.name: module for module in map(_parsed, _source_files()) if module}
    for module in modules.values():
        for owner, name, member, paragraph in module.added:
            if owner in modules and not member.startswith("._"):
                modules[owner].definitions.setdefault(name, {}).setdefault(member, paragraph)
    return {
        public_name + member: paragraph
        for (owner, name), public_name in sorted(_public_names(modules).items())
        for member, paragraph in modules[owner].definitions[name].items()
    }


# Which files.


@dataclass(frozen=True)
class _SourceFile:
    module: str
    path: Path

    @property
    def package(self) -> str:
        return self.module if self.path.stem == "__init__" else self.module.rpartition(".")[0]


def _source_files() -> Iterator[_SourceFile]:
    yield from _files_below(Path(sysconfig.get_path("stdlib")), "")
    numpy = importlib.util.find_spec("numpy")  # finds, and does not import
    for folder in (numpy and numpy.submodule_search_locations) or ():
        yield from _files_below(Path(folder), "numpy.")


def _files_below(folder: Path, prefix: str) -> Iterator[_SourceFile]:
    for entry in sorted(folder.iterdir()):
        name = entry.stem
        if not name.isidentifier() or name in _LEFT_OUT or name.startswith("test_"):
            continue
        if entry.suffix == ".py":
            yield _SourceFile(prefix.rstrip(".") if name == "__init__" else prefix + name, entry)
        elif (entry / "__init__.py").is_file():
            yield from _files_below(entry, f"{prefix}{name}.")


# What a file says.


@dataclass
class _Module:
    """One source: what it documents, and which names it takes from where.

    Attributes:
        definitions: Name → its paragraphs: {"": of the class, ".method": of its method}.
        stated: Name → the module that it claims to be in.
        imports: Name → where it comes from, as (module, name there): several after `try … except ImportError`.
        stars: The modules of `from module import *`.
        exports: `__all__`, where it is written out.
        added: What it documents in other modules: (module, name, "" or ".member", paragraph).
    """

    name: str
    package: str
    definitions: dict[str, dict[str, str]] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    imports: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    exports: set[str] | None = None
    added: list[tuple[str, str, str, str]] = field(default_factory=list)

    def read(self, statement: ast.stmt) -> None:
        """Note what a statement at the top of the module says."""
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._read_definition(statement)
            case ast.ImportFrom():
                self._read_import(statement)
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=names) | ast.Tuple(elts=names)):
                self.exports = {str(name.value) for name in names if isinstance(name, ast.Constant)}
            case ast.AugAssign(target=ast.Name(id="__all__")):
                self.exports = None
            case ast.Delete(targets=targets):
                for name in (target.id for target in targets if isinstance(target, ast.Name)):
                    self.definitions.pop(name, None)
                    self.imports.pop(name, None)
            case ast.Expr(value=ast.Call(func=ast.Name(id="add_newdoc"), args=[owner, name, doc, *_])):
                for member, paragraph in _added(doc):
                    self.added.append((_string(owner), _string(name), member, paragraph))
            case ast.Expr(value=ast.Call(func=ast.Name(id="_array_method_doc"), args=[method, _, doc])):  # numpy 2.4
                for _, paragraph in _added(doc):
                    self.added.append(("numpy._core.multiarray", "ndarray", f".{_string(method)}", paragraph))

    def _read_import(self, statement: ast.ImportFrom) -> None:
        origin = importlib.util.resolve_name("." * statement.level + (statement.module or ""), self.package)
        for alias in statement.names:
            if alias.name == "*":
                self.stars.append(origin)
            else:
                self.imports.setdefault(alias.asname or alias.name, []).append((origin, alias.name))

    def _read_definition(self, definition: _Definition) -> None:
        members = self.definitions.setdefault(definition.name, {})
        for member, paragraph in _documented(definition, ""):
            members.setdefault(member, paragraph)
        for decorator in definition.decorator_list:
            match decorator:
                case ast.Call(func=ast.Name(id="set_module"), args=[module]):
                    self.stated[definition.name] = _string(module)


def _parsed(source: _SourceFile) -> _Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file that is read
            tree = ast.parse(source.path.read_bytes())
    except (SyntaxError, ValueError):  # not Python of this version, or not in the encoding that it names
        return None
    module = _Module(source.module, source.package)
    for statement in _statements(tree.body):
        module.read(statement)
    return module


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, with those inside of `if` and `try`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from _statements(statement.body + statement.orelse)
        elif isinstance(statement, ast.Try):
            handlers = [inner for handler in statement.handlers for inner in handler.body]
            yield from _statements(statement.body + handlers + statement.orelse)


def _documented(definition: _Definition, member: str) -> Iterator[tuple[str, str]]:
    """Member and paragraph of a definition, and of all that is public in it if it is a class."""
    if paragraph := _first_paragraph(ast.get_docstring(definition) or ""):
        yield member, paragraph
    if isinstance(definition, ast.ClassDef):
        for inner in _statements(definition.body):
            if isinstance(inner, _Definition) and not inner.name.startswith("_"):
                yield from _documented(inner, f"{member}.{inner.name}")


def _added(doc: ast.expr) -> Iterator[tuple[str, str]]:
    """Member and paragraph of add_newdoc's argument: a docstring, (attribute, docstring), or a list of such pairs."""
    match doc:
        case ast.List(elts=docs):
            for each in docs:
                yield from _added(each)
        case ast.Tuple(elts=[ast.Constant(value=str(attribute)), text]):
            yield from ((f".{attribute}", paragraph) for _, paragraph in _added(text))
        case ast.Call(func=ast.Attribute(value=text)):  # """…""".replace(…)
            yield from _added(text)
        case ast.Constant(value=str(text)):
            if paragraph := _first_paragraph(inspect.cleandoc(text)):
                yield "", paragraph


def _string(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _first_paragraph(docstring: str) -> str:
    """The first paragraph on one line, after the signatures with which docstrings of C functions begin."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", docstring.strip())]
    while len(paragraphs) > 1 and _SIGNATURE.fullmatch(paragraphs[0]):
        del paragraphs[0]
    return paragraphs[0]


# What is public, and under which name.


def _public_names(modules: dict[str, _Module]) -> dict[tuple[str, str], str]:
    """Definition, as module and name → the shortest public name under which it can be imported."""
    names: dict[tuple[str, str], str] = {}
    for module in modules.values():
        if not _is_public(module.name):
            continue
        for name in _exported(modules, module.name, ()) | set(module.definitions):
            home = _home(modules, module.name, name, ())
            if home and not name.startswith("_") and name not in _LEFT_OUT and _offers(module, name, home[0]):
                candidate = f"{_KNOWN_AS.get(module.name, module.name)}.{name}"
                stated = f"{modules[home[0]].stated.get(home[1])}.{name}"
                names[home] = min(names.get(home, candidate), candidate, key=lambda n: (n != stated, n.count("."), n))
    return names


def _is_public(module: str) -> bool:
    private = module in _INTERNAL or any(part.startswith("_") for part in module.split("."))
    return module in _KNOWN_AS or not private


def _offers(module: _Module, name: str, home: str) -> bool:
    """Whether the module means a name, defined in `home`, for its users, and does not only use it itself."""
    if home == module.name:
        return True
    if _is_public(home):
        return module.name == module.package and home.startswith(f"{module.name}.")
    return name not in module.imports or home.partition(".")[0] == module.name.partition(".")[0]


def _exported(modules: dict[str, _Module], module_name: str, importing: tuple[str, ...]) -> set[str]:
    """What `from module import *` gives."""
    module = modules.get(module_name)
    if module is None or module_name in importing:
        return set()
    if module.exports is not None:
        return module.exports
    names = set(module.definitions) | set(module.imports)
    for star in module.stars:
        names |= _exported(modules, star, (*importing, module_name))
    return {name for name in names if not name.startswith("_")}


def _home(
    modules: dict[str, _Module], module_name: str, name: str, importing: tuple[str, ...]
) -> tuple[str, str] | None:
    """Module in which a name is defined, and its name there; None if that is in C, or the name a module's."""
    module = modules.get(module_name)
    if module is None or module_name in importing:
        return None
    if name in module.definitions:
        return module_name, name
    importing = (*importing, module_name)
    origins = module.imports.get(name, []) + [
        (star, name) for star in module.stars if name in _exported(modules, star, importing)
    ]
    homes = (_home(modules, origin, original, importing) for origin, original in origins)
    return next((home for home in homes if home), None)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.corpus FILE")
    sys.stdout.write(f"{write_corpus(Path(sys.argv[1])):,} documents\n")
