"""Mutation testing: of programs that were changed in one place, how many do the tests notice?

    pip install --target FOLDER mutmut==3.8.1
    python -m bench.mutation --work /tmp/mutants --packages FOLDER --count 300 --seed 1

mutmut (a package of its own, in no environment of this project) writes every mutant of what `PARTS` names into a copy
of the repository below `--work`. The tests are run once there to see which of them reach which function. Then comes a
sample: each part has its share of `--count`, drawn by `--seed`. For each mutant a process is forked that runs the tests
which reach its function, the quickest first, until one fails. A mutant that no test reaches has survived.

Everything is kept in `--work`: a second call goes on where the first was ended, `--minutes` ends one by itself, and
`--again` tries once more what has survived, after tests were added: the copy's tests are brought up to date, what they
reach is found anew, and each mutant has a session of its own (else tests are collected once, so that what is computed
while they are collected is the program's own). `--wider` tries the survivors by the test files of other parts.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAINING = (
    "loop", "average", "captions", "caption_lines", "caption_variation", "card", "memory_need", "metadata", "names",
    "noise_and_loss", "objective", "optimizers", "pace", "packages", "pictures", "plan", "precision", "rates", "ahead",
    "refused_jobs", "refused_kinds", "schedules", "state", "words", "class_pictures", "runs",
)  # fmt: skip
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
    "networks": (("lib_trainer/networks/*",), ("tests/networks",)),
    "training": (("lib_trainer/training/*",), tuple(f"tests/training/test_{name}.py" for name in TRAINING)),
}
"""What is mutated, and the tests that are tried: those beside it. What takes minutes (forecasts against real runs, both
hosts side by side) is left out, so that a mutant which only these would notice counts as survived."""
COPIED = ("tests", "miniature", "requirements", "docs", "scripts", "javascript", "bench")
MARKERS = "not slow and not browser and not webui and not gpu"
PYTEST = (
    "-q",
    "--rootdir=.",
    "--tb=line",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--durations=0",
    "--timeout=0",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-m",
    MARKERS,
)
HEAVY = ("torch", "numpy", "PIL.Image", "diffusers", "transformers", "gradio", "onnxruntime", "hypothesis", "pytest")
"""Imported before the processes are forked, so that each need not."""
SENTENCES = "tests/refusals/test_catalogue.py"
LEFT_OUT = ("on_a_card", "out_of_memory", "forecast", "same_files", "two_hosts", "readers")
MOST_FILES = 3
TOLD = r"(?m)^[-+].*(Sentence|Error|Reason)\(|^[-+]\s+(\"|field|number)"
"""Changes that the test of sentences may see."""
LIMIT = 60
"""Seconds of the processor that a mutant has beside ten times what its tests took without it."""


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
        for name in ("install.py", "preload.py", "style.css", "README.md", "README.zh-CN.md", "CHANGELOG.md", "dev.py"):
            shutil.copy2(ROOT / name, copy / "mutants" / name)
        (copy / "mutants" / "made").touch()


def bring_tests(work: Path) -> None:
    """The tests of today over those of the copy."""
    shutil.copytree(ROOT / "tests", work / "copy" / "mutants" / "tests", dirs_exist_ok=True)


class Reached:
    """pytest's plugin that notes which tests reach which function, and how long each took."""

    def __init__(self, hits: set[str]) -> None:
        self.hits, self.tests, self.seconds, self.failed = hits, defaultdict[str, set[str]](set), {}, set[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when == "teardown":
            for function in self.hits:
                self.tests[function].add(report.nodeid)
            self.hits.clear()


def reach(part: str, known: Path) -> None:
    """Run a part's tests without a mutant, in this process, and write what they reach."""
    import pytest
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.state import state

    set_mutant_under_test("stats")
    os.environ["MUTMUT_DEPENDENCY_DEPTH"] = "-1"
    noted = Reached(state()._stats)
    pytest.main([*PYTEST, *PARTS[part][1]], plugins=[noted])
    tests = {name: sorted(found - noted.failed) for name, found in noted.tests.items()}
    written = {"tests": tests, "seconds": noted.seconds, "failed": sorted(noted.failed)}
    known.write_text(json.dumps(written), encoding="utf-8")


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


def forked(name: str, work: Callable[[], int], seconds: float, log: Path) -> str:
    """What became of a mutant in a process of its own: "killed", "killed (time)", "survived" or "error"."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.environ["MUTANT_UNDER_TEST"] = name
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT + 10 * seconds), int(LIMIT + 10 * seconds) + 5))
            code = work()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed (time)"
    return {0: "survived", 4: "error", 5: "error", 70: "error"}.get(os.WEXITSTATUS(status), "killed")


@dataclass
class Try:
    """A mutant of the sample, and the tests that reach it, the quickest first."""

    name: str
    tests: list[str]
    seconds: float


class Collected:
    """pytest's plugin that tries mutants in place of the session's tests, which so are collected once for all."""

    def __init__(self, tries: Sequence[Try], log: Path, tell: Callable[[Try, str], bool]) -> None:
        self.tries, self.log, self.tell = tries, log, tell

    def pytest_runtestloop(self, session: Any) -> bool:
        known = {item.nodeid: item for item in session.items}
        for one in self.tries:
            items = [known[test] for test in one.tests if test in known]
            if not self.tell(one, forked(one.name, partial(self._run, session, items), one.seconds, self.log)):
                break
        return True

    @staticmethod
    def _run(session: Any, items: list[Any]) -> int:
        for item, following in zip(items, [*items[1:], None]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0


def fresh(one: Try) -> int:
    """The tests in a session of their own, for which everything is imported anew."""
    import pytest

    return int(pytest.main(["-x", *PYTEST, *one.tests]))


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
    quick = [path for path in found if not any(word in path.name for word in LEFT_OUT)]
    return [str(path.relative_to(copy)) for path in sorted(quick, key=lambda one: len(sources[one]))][:MOST_FILES]


def widen(work: Path, options: argparse.Namespace) -> None:
    """What has survived is put into the plain source and tried by the test files that name its module, and by the test
    that reads all sources for sentences: it sees a code without words, and facts that do not fit."""
    from mutmut.mutation.diff_apply import apply_mutant, get_diff_for_mutant

    copy, log = work / "copy", work / "results.jsonl"
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PY_IGNORE_IMPORTMISMATCH"] = "1"
    for module in HEAVY:
        __import__(module)
    passes: dict[str, bool] = {}

    def tries(file: str) -> str:
        return forked("", partial(fresh, Try("", [file], 0)), 10, work / "wide.log")

    for name, result in read(log).items():
        if result["outcome"].startswith("killed") or result.get("wide") or result["part"] not in options.parts:
            continue
        source = copy / (name.rpartition(".")[0].replace(".", "/") + ".py")
        before, files, outcome = source.read_text(encoding="utf-8"), naming(copy, name), "survived"
        if re.search(TOLD, get_diff_for_mutant(name)):
            files = [SENTENCES, *files]
        for file in files:
            passes[file] = passes[file] if file in passes else tries(file) == "survived"
        files = [file for file in files if passes[file]]
        try:
            apply_mutant(name)
            for file in files:
                if (outcome := tries(file)) == "killed":
                    break
        finally:
            source.write_text(before, encoding="utf-8")
        with log.open("a", encoding="utf-8") as file_:
            told = outcome if outcome == "killed" else "survived"
            file_.write(json.dumps({**result, "outcome": told, "wide": files}) + "\n")


def load(work: Path, part: str) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Tests by function, the quickest first, and the seconds each takes. They are run first where nobody has."""
    known = work / f"reach-{part}.json"
    if not known.exists():
        words = [sys.executable, "-m", "bench.mutation", "--work", str(work), "--reach", part]
        with (work / f"reach-{part}.log").open("w") as log:
            subprocess.run(words, cwd=work / "copy" / "mutants", stdout=log, stderr=subprocess.STDOUT, check=True)
    found = json.loads(known.read_text(encoding="utf-8"))
    seconds = found["seconds"]
    return {name: sorted(tests, key=lambda one: seconds[one]) for name, tests in found["tests"].items()}, seconds


def run(work: Path, options: argparse.Namespace) -> None:
    import pytest
    from mutmut.utils.format_utils import mangled_name_from_mutant_name

    copy, log = work / "copy", work / "results.jsonl"
    results, ends = read(log), time.monotonic() + 60 * options.minutes
    os.chdir(copy / "mutants")
    sys.path.insert(0, str(copy / "mutants"))
    os.environ.update(PY_IGNORE_IMPORTMISMATCH="1", MUTANT_UNDER_TEST="")
    for module in HEAVY:
        __import__(module)
    drawn = sample(mutants(copy), options.count, options.seed)
    for part in options.parts:
        tests, seconds = load(work, part)
        tries = []

        def tell(one: Try, outcome: str, part: str = part) -> bool:
            with log.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"part": part, "name": one.name, "outcome": outcome, "tests": len(one.tests)}) + "\n"
                )
            return time.monotonic() < ends

        for name in (name for own, name in drawn if own == part):
            before = results.get(name, {"outcome": ""})["outcome"]
            if before.startswith("killed") or (before and not options.again):
                continue
            reached = tests.get(mangled_name_from_mutant_name(name), [])
            one = Try(name, reached, sum(seconds[test] for test in reached))
            if not reached:
                tell(one, "survived (not reached)")
            elif not options.again:
                tries.append(one)
            elif not tell(one, forked(name, partial(fresh, one), one.seconds, work / "last.log")):
                return
        tries.sort(key=lambda one: one.seconds)
        if tries:
            pytest.main(
                [*PYTEST, f"--basetemp={work / 'tmp'}", *PARTS[part][1]],
                plugins=[Collected(tries, work / "last.log", tell)],
            )


def read(log: Path) -> dict[str, dict[str, Any]]:
    """The newest result of each mutant."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {one["name"]: one for one in map(json.loads, lines)}


def report(work: Path) -> None:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    results = read(work / "results.jsonl").values()
    os.chdir(work / "copy")
    print("| part | mutants | noticed | |\n|---|---|---|---|")
    for part in (*PARTS, "all"):
        own = [one for one in results if part in (one["part"], "all")]
        good = sum(one["outcome"].startswith("killed") for one in own)
        print(f"| {part} | {len(own)} | {good} | {100 * good / max(1, len(own)):.1f} % |")
    for one in results:
        if not one["outcome"].startswith("killed"):
            print(f"\n### {one['name']}: {one['outcome']} ({one['tests']} tests)\n")
            print(get_diff_for_mutant(one["name"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the copy and the results")
    parser.add_argument("--packages", type=Path, help="where mutmut is installed, if it is in no environment")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="end after so many")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="try once more what was not killed")
    parser.add_argument("--wider", action="store_true", help="try what was not killed by tests of other parts")
    parser.add_argument("--report", action="store_true", help="say what was found, with the survivors' changes")
    parser.add_argument("--reach", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    if options.packages is not None:
        sys.path.insert(0, str(options.packages.absolute()))
        os.environ["PYTHONPATH"] = str(options.packages.absolute())
    if options.report:
        return report(work)
    if options.reach is not None:
        return reach(options.reach, work / f"reach-{options.reach}.json")
    make(work)
    if options.wider:
        return widen(work, options)
    if options.again:
        bring_tests(work)
        for part in options.parts:
            (work / f"reach-{part}.json").unlink(missing_ok=True)
    return run(work, options)


if __name__ == "__main__":
    main()
