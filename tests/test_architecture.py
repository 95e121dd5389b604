"""The shape of the code, read from its source: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lib_trainer"
ENTRY_POINTS = {"lib_trainer.__main__", "lib_trainer.cli.main", "lib_trainer.cli.captions"}
"""Put hosts, pages and core together, as scripts/ does in the WebUI."""

CALLS_ALLOWED = {"lib_trainer.ui.standalone": ["os.environ.setdefault"]}
"""gradio reads its environment when it is imported."""

CONDITIONS = ("TYPE_CHECKING", "sys.version_info", "__name__")
"""What may be asked at the top level of a module."""

SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMED = {path: module_name(path) for path in SOURCES}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """What is read of the sources is kept for these tests and not longer."""
    yield
    tree.cache_clear()
    imports.cache_clear()
    nodes.cache_clear()


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Every statement below a node, without what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if not inside_functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from statements(child, inside_functions=inside_functions)


@functools.cache
def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Absolute names of what a file imports; `from a import b` counts as a, and as a.b where that is a module."""
    found = set()
    for node in statements(tree(path), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write lib_trainer's imports in full"
            assert node.module
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names if is_module(f"{node.module}.{a.name}")}
    return found


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def reaches(names: set[str], *packages: str) -> set[str]:
    return {name for name in names for package in packages if name == package or name.startswith(package + ".")}


def is_core(name: str) -> bool:
    return not reaches({name}, "lib_trainer.host", "lib_trainer.ui") and name not in ENTRY_POINTS


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    assert SCRIPTS
    assert "lib_trainer.ports" in imports(PACKAGE / "training" / "desk.py")
    assert "gradio" in imports(PACKAGE / "ui" / "kit" / "form.py")


def crossed(name: str, found: set[str]) -> set[str]:
    """Of what the module `name` imports, what its layer must not."""
    wrong: set[str] = set()
    if is_core(name):
        wrong |= reaches(found, "modules", "gradio", "lib_trainer.host", "lib_trainer.ui", *ENTRY_POINTS)
    if reaches({name}, "lib_trainer.ui"):
        wrong |= reaches(found, "modules", "lib_trainer.host", *ENTRY_POINTS)
    if reaches({name}, "lib_trainer.host"):
        wrong |= reaches(found, "gradio", "lib_trainer.ui", "lib_trainer.work.jobs", *ENTRY_POINTS)
    if not reaches({name}, "lib_trainer.host.webui"):
        wrong |= reaches(found, "modules", "lib_trainer.host.webui")
    return wrong


def test_imports_follow_the_layers() -> None:
    wrong = {name: crossed(name, imports(path)) for path, name in NAMED.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("lib_trainer.training.loop", "gradio"),
        ("lib_trainer.files", "lib_trainer.ui.kit.form"),
        ("lib_trainer.ui.generate", "lib_trainer.host.standalone.host"),
        ("lib_trainer.host.standalone.host", "gradio"),
        ("lib_trainer.host.standalone.host", "lib_trainer.host.webui"),
        ("lib_trainer.cli.main", "modules.shared"),
    ],
)
def test_an_import_across_the_layers_is_noticed(name: str, imported: str) -> None:
    assert crossed(name, {imported, "torch"}) == {imported}


def test_modules_are_imported_by_the_webui_host_and_the_scripts_alone() -> None:
    folders = [PACKAGE, *(ROOT / name for name in ("miniature", "bench", "scripts"))]
    others = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / "preload.py", ROOT / "dev.py"]
    allowed = (PACKAGE / "host" / "webui", ROOT / "scripts")
    users = [path for path in others if reaches(plain_imports(path), "modules")]
    assert users
    assert [path for path in users if not any(folder in path.parents for folder in allowed)] == []


def plain_imports(path: Path) -> set[str]:
    """As `imports`, for files that may import relatively."""
    plain = {alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes(path) if isinstance(node, ast.ImportFrom) and node.level == 0}


def test_no_import_cycles() -> None:
    graph = {
        module_name(path): reaches(imports(path, inside_functions=False), "lib_trainer") - {module_name(path)}
        for path in SOURCES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def done_at_import(body: list[ast.stmt], allowed: Sequence[str] = ()) -> list[int]:
    """Lines at the top level that do something: a call for its effect alone, a loop, an opened or deleted thing."""
    lines = []
    for node in body:
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.func
        if (
            (call and ast.unparse(call) not in allowed)
            or isinstance(node, (ast.For, ast.While, ast.With, ast.Delete))
            or (isinstance(node, ast.If) and not ast.unparse(node.test).startswith(CONDITIONS))
        ):
            lines.append(node.lineno)
    return lines


def test_import_bodies_only_define() -> None:
    done = {name: done_at_import(tree(path).body, CALLS_ALLOWED.get(name, ())) for path, name in NAMED.items()}
    assert {name: lines for name, lines in done.items() if lines} == {}


def test_what_is_done_at_import_is_noticed() -> None:
    for source in ("print()", "for x in y: pass", "while x: pass", "with x: pass", "del x", "if x: y = 1"):
        assert done_at_import(ast.parse(f"a = 1\n{source}").body) == [2], source
    assert not done_at_import(ast.parse("if TYPE_CHECKING:\n    import x\na = f()\nb()").body, ["b"])


ONCE = {
    '__dict__["forward"] =': "patching.py",
    "mem_get_info": "memory.py",
    "virtual_memory": "memory.py",
    "could not create a memory": "memory.py",
    "import fcntl": None,
    "import msvcrt": None,
}
"""What is done in one place of its own: where."""


@pytest.mark.parametrize("words", ONCE)
def test_small_things_are_done_in_one_place(words: str) -> None:
    users = [str(path.relative_to(PACKAGE)) for path in SOURCES if words in path.read_text(encoding="utf-8")]
    assert users == ([ONCE[words]] if ONCE[words] else [])


FAMILY_MODULES = ("lib_trainer.families.sd1", "lib_trainer.families.sd2", "lib_trainer.families.sdxl")


def family_words() -> list[str]:
    """What a family or a stranger is called, in sentences and in files."""
    from lib_trainer.families import known

    called = [one.word for one in (*known.FAMILIES, known.EDITING, known.REFINER, known.SD3, known.FLUX)]
    called += [word for one in known.FAMILIES for word in (one.model, one.version, one.architecture)]
    return [word for word in called if word != known.EDITING.word]


def texts(path: Path) -> Iterator[str]:
    """The texts of a file, without those that only a reader of the source sees."""
    explained = {
        id(node.value) for node in nodes(path) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explained:
            yield node.value


def test_nobody_but_the_families_asks_for_a_family_by_its_name() -> None:
    """Everybody else asks the object: SDXL is a description, and not an `if`."""
    words, others = family_words(), [path for path in SOURCES if PACKAGE / "families" not in path.parents]
    assert "SDXL" in words and len(others) > 300
    asked = [(path.name, name) for path in [*others, *SCRIPTS] for name in reaches(imports(path), *FAMILY_MODULES)]
    named = [
        (path.name, word, text)
        for path in [*others, *SCRIPTS]
        for text in texts(path)
        for word in words
        if word in text
    ]
    compared = [
        (path.name, node.lineno)
        for path in [*others, *SCRIPTS]
        for node in nodes(path)
        if isinstance(node, ast.Compare) and compares_a_family(node)
    ]
    assert (asked, named, compared) == ([], [], [])


def compares_a_family(node: ast.Compare) -> bool:
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    return any(re.search(r"\bfamily\.(word|card|version|architecture|model)$", side) for side in sides)


def test_sentences_name_no_family() -> None:
    for path in (PACKAGE / "refusals").glob("*.toml"):
        told = path.read_text(encoding="utf-8")
        assert [word for word in family_words() if word in told] == [], path


def kind_names() -> frozenset[str]:
    """Of the choices of `network.kind`."""
    from lib_trainer.config.base import KINDS

    return frozenset(KINDS)


def decided_by(node: ast.AST) -> list[ast.AST]:
    """What a piece of code decides by: sides of comparisons, keys of a table, arguments of `get`, cases of a match."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Dict):
        return [key for key in node.keys if key is not None]
    if isinstance(node, ast.MatchValue):
        return [node.value]
    if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Tuple, ast.Set, ast.List)):
        return list(node.value.elts)  # a tuple with a name is there to be looked up in
    return []


def names_decided_by(source: ast.AST, names: frozenset[str]) -> list[str]:
    """Names of kinds, each with its line."""
    found = []
    for node in ast.walk(source):
        for side in decided_by(node):
            for leaf in [side, *(side.elts if isinstance(side, (ast.Tuple, ast.Set, ast.List)) else [])]:
                if isinstance(leaf, ast.Constant) and leaf.value in names:
                    found.append(f"{leaf.value} in line {leaf.lineno}")
    return found


MATHS = {"lib_trainer.networks.lora"}
"""Where lora, loha and lokr name what an adapter computes."""
DECLARED = ("lib_trainer.config", "lib_trainer.options")
"""Declarations of options say which kinds read them, and how the page shows the names."""


def test_nothing_hangs_on_the_name_of_a_kind_of_training() -> None:
    """What depends on a kind is asked of its object in lib_trainer/kinds."""
    kinds = kind_names()
    found = {
        name: names_decided_by(tree(path), kinds)
        for path, name in NAMED.items()
        if not reaches({name}, "lib_trainer.kinds", *DECLARED, *MATHS)
    }
    assert {name: decided for name, decided in found.items() if decided} == {}


def test_a_decision_by_the_name_of_a_kind_is_noticed() -> None:
    names = kind_names()
    assert {"lora", "checkpoint", "embedding"} < names and len(names) > 8
    decisions = (
        "job.network.kind == 'lora'", "'pivotal' != kind", "kind in ('lora', 'locon')", "kind not in {'loha'}",
        "{'embedding': 1}.get(kind)", "KINDS = ('lora', 'locon')",
        "match kind:\n    case 'lora': pass", "match kind:\n    case 'x' | 'lokr': pass",
    )  # fmt: skip
    for decision in decisions:
        assert names_decided_by(ast.parse(decision), names), decision
    assert not names_decided_by(ast.parse("folder / 'lora'; job.embedding; say('checkpoint')"), names)


def test_scripts_are_short() -> None:
    for path in SCRIPTS:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) <= 40, f"{path.name} has {len(lines)} lines: move what it does into lib_trainer"


def test_preload_imports_argparse_alone() -> None:
    assert plain_imports(ROOT / "preload.py") == {"argparse"}


def test_the_installer_imports_nothing_that_may_be_missing() -> None:
    found = imports(PACKAGE / "install_plan.py") | imports(PACKAGE / "__init__.py")
    assert found == {"__future__", "re", "collections.abc", "dataclasses", "typing"}


def test_files_and_functions_stay_readable() -> None:
    long = [path for path in [*SOURCES, *SCRIPTS] if len(path.read_text(encoding="utf-8").splitlines()) > 430]
    assert long == []
    lengths = {
        f"{node.name} in line {node.lineno} of {path.relative_to(ROOT)}": (node.end_lineno or node.lineno)
        - node.lineno
        + 1
        for path in [*SOURCES, *SCRIPTS]
        for node in nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}
