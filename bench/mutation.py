"""Mutation testing: of programs that were changed in one place, how many do the tests notice?

    pip install --target FOLDER mutmut==3.8.1
    python -m bench.mutation --work /tmp/mutants --packages FOLDER --count 300 --seed 1

mutmut (a package of its own, in no environment of this project) writes every mutant of what `PARTS` names into a copy
of the repository below `--work`. A sample is drawn by `--seed`: each part has its share of `--count`. Only functions of
the sample are wrapped (`bench/mutant_switch.py`), so that the copy is as quick as the program. The tests are run once
there to see which of them reach which function. For each mutant a process is forked that runs the tests which reach
its function, the quickest first, until one fails; a test that fails without the mutant as well is not counted. A
mutant that no test reaches has survived, and so has one that outlives `--budget` seconds of tests.

Everything is kept in `--work`: a second call goes on where the first was ended, `--minutes` ends one by itself, and
`--again` tries once more what has survived, after tests were added: they are brought into the copy, and what is reached
by those of a new name is found. `--wider` tries the survivors by the test files of other parts that name their
module, and by the test that reads all sources for sentences. Tests are collected once for all mutants, so that what is
computed while they are collected is the program's own.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    "on_a_card",
    "out_of_memory",
    "forecast.",
    "same_files",
    "two_hosts",
    "readers",
    "half_host",
    "other_families",
)
"""Test files that take minutes: forecasts against real runs, hosts side by side. A mutant which only these would notice
counts as survived."""
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "captions": (("lib_trainer/captions/*",), ("tests/captions",)),
    "tagging": (
        (
            "lib_trainer/tagging/captions/*",
            "lib_trainer/tagging/choices.py",
            "lib_trainer/tagging/settings.py",
            "lib_trainer/tagging/scores/table.py",
            "lib_trainer/tagging/scores/ensemble.py",
        ),
        ("tests/tagging",),
    ),
    "networks": (("lib_trainer/networks/*",), ("tests/networks", "tests/families")),
    "training": (("lib_trainer/training/*",), ("tests/training",)),
}
"""What is mutated, and the folders of the tests that are tried: those of all parts, the part's own first."""
COPIED = ("tests", "miniature", "requirements", "docs", "scripts", "javascript", "bench")
BESIDE = ("install.py", "preload.py", "style.css", "README.md", "README.zh-CN.md", "CHANGELOG.md", "dev.py")
MARKERS = "not slow and not browser and not webui and not gpu"
PYTEST = (
    "-q",
    "--rootdir=.",
    "--tb=line",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--timeout=0",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-m",
    MARKERS,
)
HEAVY = ("torch", "numpy", "PIL.Image", "diffusers", "transformers", "gradio", "onnxruntime", "hypothesis", "pytest")
"""Imported before the processes are forked, so that each need not."""
SENTENCES = "tests/refusals/test_catalogue.py"
MOST_FILES = 3
TOLD = r"(?m)^[-+].*(Sentence|Error|Reason)\(|^[-+]\s+(\"|field|number)"
"""Changes that the test of sentences may see."""
PATIENCE = 20
"""Seconds of the processor that each test has beside six times what it took without a mutant."""


def make(work: Path) -> None:
    """The copy, and every mutant in it."""
    copy = work / "copy"
    if not (copy / "pyproject.toml").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        patterns = [pattern for own, _ in PARTS.values() for pattern in own]
        settings = {
            "source_paths": ["lib_trainer"],
            "only_mutate": patterns,
            "also_copy": list(COPIED),
            "track_dependencies": False,
        }
        told = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        with (copy / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(f"\n[tool.mutmut]\n{told}")
    if not (copy / "mutants" / "made").exists():
        steps = "copy_src_dir, copy_also_copy_files, setup_source_paths, create_mutants"
        code = f"from mutmut.__main__ import {steps}\ncopy_src_dir(); copy_also_copy_files(); setup_source_paths()\n"
        (copy / "mutants").mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, "-c", f"{code}create_mutants(1)"], cwd=copy, check=True, stdout=subprocess.DEVNULL
        )
        for name in BESIDE:
            shutil.copy2(ROOT / name, copy / "mutants" / name)
        (copy / "mutants" / "made").touch()


def watch(work: Path, drawn: Iterable[tuple[str, str]]) -> None:
    """Put the switch where the copy imports mutmut's trampoline, with the functions of the sample."""
    place = work / "switch" / "mutmut" / "mutation"
    place.mkdir(parents=True, exist_ok=True)
    for package in (place.parent, place):
        (package / "__init__.py").touch()
    shutil.copy2(Path(__file__).with_name("mutant_switch.py"), place / "trampoline.py")
    functions = sorted({name.rpartition("__mutmut_")[0] for _, name in drawn})
    (place / "watched.json").write_text(json.dumps(functions), encoding="utf-8")


def bring_tests(work: Path) -> None:
    """The tests of today over those of the copy. What was passed in a file that has changed counts no more."""
    copy, log = work / "copy" / "mutants", work / "results.jsonl"
    today = {str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "tests").rglob("*.py")}
    same = {name for name, data in today.items() if (copy / name).exists() and (copy / name).read_bytes() == data}
    for one in read(log).values():
        passed = [test for test in one["passed"] if test.partition("::")[0] in same]
        if passed != one["passed"]:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**one, "passed": passed}) + "\n")
    for place in (work / "copy" / "tests", work / "copy" / "mutants" / "tests"):
        shutil.copytree(ROOT / "tests", place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def mutants(copy: Path) -> dict[str, list[str]]:
    """The names of all mutants by part."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for meta in sorted((copy / "mutants").rglob("*.meta")):
        source = str(meta.relative_to(copy / "mutants")).removesuffix(".meta")
        part = next((part for part, own in PARTS.items() if any(fnmatch.fnmatch(source, one) for one in own[0])), None)
        if part is not None:
            found[part] += sorted(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"])
    return found


def sample(found: dict[str, list[str]], count: int, seed: int) -> list[tuple[str, str]]:
    """(part, mutant): of each part its share, and of all parts together `count`, in an order of chance."""
    chance, total = random.Random(seed), sum(map(len, found.values()))
    drawn = []
    for part, names in found.items():
        drawn += [(part, one) for one in chance.sample(names, min(len(names), -(-count * len(names) // total)))]
    chance.shuffle(drawn)
    return drawn


def own_files(copy: Path) -> list[str]:
    """The test files of all parts."""
    folders = [copy / "tests" / folder.removeprefix("tests/") for _, own in PARTS.values() for folder in own]
    found = [path for folder in folders for path in sorted(folder.rglob("test_*.py"))]
    return [str(path.relative_to(copy)) for path in found if not any(word in path.name for word in LEFT_OUT)]


def naming(copy: Path, mutant: str) -> list[str]:
    """A few test files that name a mutant's module, or where there is none a module that imports it."""
    module = mutant.rpartition(".")[0]
    sources = {path: path.read_text(encoding="utf-8") for path in (copy / "tests").rglob("test_*.py")}
    importers = [
        str(path.relative_to(copy)).removesuffix(".py").replace("/", ".")
        for path in (copy / "lib_trainer").rglob("*.py")
        if f"from {module} import" in path.read_text(encoding="utf-8")
    ]
    found: list[Path] = []
    for names in ([module], importers):
        found = found or [path for path, text in sources.items() if any(f"{name} import" in text for name in names)]
    names = [str(path.relative_to(copy)) for path in sorted(found, key=lambda one: len(sources[one]))]
    own = {folder for _, folders in PARTS.values() for folder in folders}
    left = [name for name in names if not any(word in name for word in (*LEFT_OUT, "/browser/", "/webui/"))]
    return [name for name in left if not any(name.startswith(f"{folder}/") for folder in own)][:MOST_FILES]


class Tables:
    """What is known of tests, by file: {test: seconds, functions of the sample that it reaches, whether it failed}."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "reach"
        self.folder.mkdir(exist_ok=True)

    def _path(self, file: str) -> Path:
        return self.folder / f"{file.replace('/', '+')}.json"

    def read(self, file: str) -> dict[str, dict[str, Any]]:
        path = self._path(file)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add(self, tests: dict[str, dict[str, Any]]) -> None:
        by_file: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for name, one in tests.items():
            by_file[name.partition("::")[0]][name] = one
        for file, found in by_file.items():
            self._path(file).write_text(json.dumps(self.read(file) | found), encoding="utf-8")


class Reached:
    """pytest's plugin that runs the tests that are not known yet and notes which function each reaches."""

    def __init__(self, hits: set[str], tables: Tables) -> None:
        self.hits, self.tables = hits, tables
        self.tests: dict[str, dict[str, Any]] = {}

    @staticmethod
    def _file(name: str) -> str:
        return name.partition("::")[0]

    def pytest_collection_finish(self, session: Any) -> None:
        known = {
            name for file in {self._file(item.nodeid) for item in session.items} for name in self.tables.read(file)
        }
        session.items[:] = [item for item in session.items if item.nodeid not in known]
        self.hits.clear()

    def pytest_runtest_logreport(self, report: Any) -> None:
        one = self.tests.setdefault(report.nodeid, {"seconds": 0.0, "hits": [], "failed": False})
        one["seconds"] += report.duration
        one["failed"] |= bool(report.failed)
        if report.when == "teardown":
            one["hits"] = sorted(self.hits)
            self.hits.clear()

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:
        """A file's table is written as soon as the next file begins."""
        if any(self._file(name) != self._file(item.nodeid) for name in self.tests):
            self.pytest_sessionfinish()

    def pytest_sessionfinish(self) -> None:
        self.tables.add(self.tests)
        self.tests = {}


Tell = Callable[[int], object]


@dataclass
class Try:
    """A mutant of the sample, and the tests that reach it, in their order; `tests` are as many as the budget has."""

    part: str
    name: str
    tests: list[tuple[str, float]]
    reached: int


def forked(name: str, work: Callable[[Tell], int], log: Path) -> tuple[str, int]:
    """What became of a mutant in a process of its own ("killed", "killed (time)", "survived" or "error"), and the
    number that `work` has told last."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.setsid()
            os.environ["MUTANT_UNDER_TEST"] = name
            if switch := sys.modules.get("mutmut.mutation.trampoline"):
                switch.active = name  # type: ignore[attr-defined]
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = work(lambda number: os.write(writing, b"%d\n" % number))
        os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    told: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        told = os.read(reading, 1 << 20).split()
    os.close(reading)
    last = int(told[-1]) if told else -1
    if os.WIFSIGNALED(status):
        return "killed (time)", last
    return {0: "survived", 4: "error", 5: "error", 70: "error"}.get(os.WEXITSTATUS(status), "killed"), last


def limit(seconds: float) -> None:
    """End this process where what comes now takes much longer than it should."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + PATIENCE + 6 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(4 * PATIENCE + 15 * seconds))


class Collected:
    """pytest's plugin that tries mutants in place of the session's tests, which so are collected once for all."""

    def __init__(self, tries: Sequence[Try], log: Path, tell: Callable[[Try, dict[str, Any]], bool]) -> None:
        self.tries, self.log, self.tell = tries, log, tell
        self.sound: dict[str, bool] = {}
        self.items: dict[str, Any] = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self._share(session)
        for one in self.tries:
            tests = [(test, seconds) for test, seconds in one.tests if test in self.items]
            while True:
                outcome, last = forked(one.name, partial(self._run, session, tests), self.log)
                by = tests[last][0] if outcome.startswith("killed") and last >= 0 else ""
                if not by or self._is_sound(session, tests[last]):
                    break
                tests.pop(last)
            passed = [test for test, _ in tests] if outcome == "survived" else []
            if not self.tell(one, {"outcome": outcome, "by": by, "passed": passed}):
                break
        return True

    def _share(self, session: Any) -> None:
        """Have the session's models made once, by a test that needs them, and not by every process anew."""
        needing: dict[Path, Any] = {}
        for item in session.items:
            if {"diffusers_model", "ldm_model", "host"} & {*item.fixturenames}:
                needing.setdefault(item.path.parent, item)
        for folder, item in needing.items():
            apart = next((one for one in session.items if one.path.parent != folder), None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=apart)

    def _is_sound(self, session: Any, test: tuple[str, float]) -> bool:
        """Whether a test passes in a process of its own without a mutant."""
        if test[0] not in self.sound:
            self.sound[test[0]] = forked("", partial(self._run, session, [test]), self.log)[0] == "survived"
        return self.sound[test[0]]

    def _run(self, session: Any, tests: list[tuple[str, float]], tell: Tell) -> int:
        session.testsfailed = 0
        items = [self.items[test] for test, _ in tests]
        for number, (item, following) in enumerate(zip(items, [*items[1:], None])):
            tell(number)
            limit(tests[number][1])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0


def tries_of(work: Path, files: Sequence[str], options: argparse.Namespace) -> list[Try]:
    """What is to be tried by tests of these files, in the order of the sample."""
    tables, results = Tables(work), read(work / "results.jsonl")
    known = {name: one for file in files for name, one in tables.read(file).items() if not one["failed"]}
    reaching: dict[str, list[str]] = defaultdict(list)
    for name, one in known.items():
        for function in one["hits"]:
            reaching[function].append(name)
    tries = []
    for part, name in sample(mutants(work / "copy"), options.count, options.seed):
        before = results.get(name, {"outcome": "", "passed": ()})
        if part not in options.parts or before["outcome"].startswith("killed"):
            continue
        if before["outcome"] and not (options.again or options.wider):
            continue
        found = sorted(
            set(reaching.get(name.rpartition("__mutmut_")[0], [])) - set(before["passed"]),
            key=lambda test: (not test.startswith(PARTS[part][1]), known[test]["seconds"]),
        )
        left, tests = options.budget, []
        for test in found:
            left -= known[test]["seconds"]
            if tests and left < 0:
                break
            tests.append((test, known[test]["seconds"]))
        tries.append(Try(part, name, tests, len(found) + len(before["passed"])))
    return tries


def files_of(work: Path, options: argparse.Namespace) -> list[str]:
    """The test files of a call: those of the parts, or those of others that name what has survived."""
    copy = work / "copy" / "mutants"
    if not options.wider:
        return own_files(copy)
    left = [name for name, one in read(work / "results.jsonl").items() if not one["outcome"].startswith("killed")]
    return sorted({file for name in left for file in naming(work / "copy", name)} - {SENTENCES})


def inside(work: Path, options: argparse.Namespace) -> None:
    """The stages that run in a process of the copy: "reach" and "try"."""
    copy = work / "copy" / "mutants"
    os.chdir(copy)
    sys.path[:] = [str(work / "switch"), str(copy), *(one for one in sys.path if one != str(Path(__file__).parent))]
    for module in HEAVY:
        importlib.import_module(module)
    import pytest

    files, tables = files_of(work, options), Tables(work)
    if options.stage == "reach":
        switch = importlib.import_module("mutmut.mutation.trampoline")
        pytest.main([*PYTEST, f"--basetemp={work / 'tmp'}", *files], plugins=[Reached(switch.hits, tables)])
        return
    tries, ends = tries_of(work, files, options), time.monotonic() + 60 * options.minutes
    results = read(work / "results.jsonl")

    def tell(one: Try, found: dict[str, Any]) -> bool:
        passed = [*results.get(one.name, {}).get("passed", ()), *found["passed"]]
        line = {"part": one.part, "name": one.name, "reached": one.reached, **found, "passed": passed}
        with (work / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return time.monotonic() < ends

    for one in tries:
        if one.name not in results and not one.tests:
            tell(one, {"outcome": "survived (not reached)", "by": "", "passed": []})
    tried = [one for one in tries if one.tests]
    needed = sorted({test.partition("::")[0] for one in tried for test, _ in one.tests})
    if tried:
        plugin = Collected(tried, work / "last.log", tell)
        pytest.main([*PYTEST, f"--basetemp={work / 'tmp'}", *needed], plugins=[plugin])


def sentences(work: Path, options: argparse.Namespace) -> None:
    """What has survived is put into the plain source and tried by the test that reads all sources for sentences: it
    sees a code without words, and facts that do not fit."""
    from mutmut.mutation.diff_apply import apply_mutant, get_diff_for_mutant

    copy, log, here = work / "copy", work / "results.jsonl", Path.cwd()
    os.chdir(copy)  # mutmut looks for its mutants there
    plain = {name: one for name, one in os.environ.items() if name != "PYTHONPATH"}  # mutmut brings a pytest along
    words = [sys.executable, "-m", "pytest", "-x", *PYTEST, SENTENCES]

    def code() -> int:
        return subprocess.run(words, cwd=copy, env=plain, capture_output=True).returncode

    if code() != 0:
        raise SystemExit(f"{SENTENCES} fails without a mutant")
    for name, result in read(log).items():
        if result["outcome"].startswith("killed") or result["part"] not in options.parts:
            continue
        if not re.search(TOLD, get_diff_for_mutant(name)):
            continue
        source = copy / (name.rpartition(".")[0].replace(".", "/") + ".py")
        before = source.read_text(encoding="utf-8")
        try:
            apply_mutant(name)
            failed = code() == 1
        finally:
            source.write_text(before, encoding="utf-8")
        if failed:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**result, "outcome": "killed", "by": SENTENCES}) + "\n")
    os.chdir(here)


def read(log: Path) -> dict[str, dict[str, Any]]:
    """The newest result of each mutant."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {one["name"]: one for one in map(json.loads, lines)}


def report(work: Path, options: argparse.Namespace) -> None:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    results = read(work / "results.jsonl")
    drawn = sample(mutants(work / "copy"), options.count, options.seed)
    os.chdir(work / "copy")
    print("| part | mutants | drawn | tried | noticed | survived | not reached | |\n|---|---|---|---|---|---|---|---|")
    sizes = {part: len(names) for part, names in mutants(work / "copy").items()}
    for part in (*PARTS, "all"):
        own = [name for of, name in drawn if part in (of, "all")]
        done = [results[name]["outcome"] for name in own if name in results]
        good, blind = sum(one.startswith("killed") for one in done), sum("not reached" in one for one in done)
        size = sizes.get(part, sum(sizes.values()))
        share = f"{100 * good / max(1, len(done)):.1f} %"
        print(
            f"| {part} | {size} | {len(own)} | {len(done)} | {good} | {len(done) - good - blind} | {blind} | {share} |"
        )
    for _, name in drawn:
        one = results.get(name)
        if one is not None and not one["outcome"].startswith("killed"):
            print(f"\n### {name}: {one['outcome']} ({len(one['passed'])} of {one['reached']} tests)\n")
            print(get_diff_for_mutant(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the copy and the results")
    parser.add_argument("--packages", type=Path, help="where mutmut is installed, if it is in no environment")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=float, default=90, help="seconds of tests that a mutant is tried by")
    parser.add_argument("--minutes", type=float, default=1e6, help="end after so many")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="try once more what was not killed")
    parser.add_argument("--wider", action="store_true", help="try what was not killed by tests of other parts")
    parser.add_argument("--report", action="store_true", help="say what was found, with the survivors' changes")
    parser.add_argument("--stage", choices=("reach", "try"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    if options.stage:
        inside(work, options)
        return
    if options.packages is not None:
        sys.path.insert(0, str(options.packages.absolute()))
        os.environ["PYTHONPATH"] = str(options.packages.absolute())
    if options.report:
        report(work, options)
        return
    make(work)
    watch(work, sample(mutants(work / "copy"), options.count, options.seed))
    if options.again:
        bring_tests(work)
    if options.wider:
        sentences(work, options)
    told = {
        **os.environ,
        "PYTHONPATH": f"{work / 'switch'}:{work / 'copy' / 'mutants'}",
        "PY_IGNORE_IMPORTMISMATCH": "1",
    }
    for stage in ("reach", "try"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--stage", stage], env=told, check=True)


if __name__ == "__main__":
    main()
