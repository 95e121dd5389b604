"""Which tags are deleted decides what a trigger word means: two schools of pruning, trained and judged.

    python -m miniature.schools --dir FOLDER

A 'character' is drawn that the checkpoint has never seen: a heart called 'zorb' that is always red. Its set is opened
in the editor, pruned by the plan 'delete all feature tags' or left by 'keep all', trained, and put back by undo. Each
LoRA then draws the same seeds with the trigger alone, with the trait prompted, and with another colour prompted; the
tagger, which had no part in training, says which pictures are red.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lib_trainer.captions.knowledge import read_knowledge
from lib_trainer.captions.plans import fold, traits
from lib_trainer.dataset.editor import Editor
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.desk import TrainingDesk

from .demo import CFG_SCALE, SAMPLER, SHAPE, SIDE, TRIGGER, concept_job
from .export import export_webui
from .judge import Judge
from .world import COLOURS, write_concept, write_known

TRAIT, OTHER = "red", "blue"
SCHOOLS = ("delete-all", "keep-all")
PROMPTS = {
    "trigger alone": f"{TRIGGER}",
    "trait prompted": f"{TRIGGER}, {TRAIT}",
    "other colour prompted": f"{TRIGGER}, {OTHER}",
}


def write_set(folder: Path) -> Path:
    """18 pictures of the character, all red, with the tag; 60 of what the checkpoint knows beside them.

    The set's own table says that the colour is a feature of the character, as hair and eyes are of a person.
    """
    target = write_concept(folder, shape=SHAPE, trigger=TRIGGER, colours=(TRAIT,), count=18)
    write_known(folder)
    (target / ".trainer").mkdir()
    (target / ".trainer" / "groups.csv").write_text(f"group,tags\nbody,{';'.join(COLOURS)}\n", encoding="utf-8")
    return target


def prune(folder: Path, school: str) -> tuple[Editor, list[str]]:
    """Open the character's folder and apply the plan; answers with the editor and what was deleted."""
    editor = Editor(folder)
    proposal = traits(editor.captions(), read_knowledge([folder / ".trainer"]), school, trigger=TRIGGER)
    preview = editor.preview(fold(proposal, TRIGGER, school))
    if preview.altered:
        editor.apply(preview)
    return editor, sorted(preview.gone())


def run(folder: Path, steps: int, seeds: int, say: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """Train both; returns {school or 'no LoRA': {prompt's name: share of seeds that are red}}."""
    character = write_set(folder / "pictures")
    before = {path: path.read_bytes() for path in character.glob("*.txt")}
    host = StandaloneHost(export_webui(folder / "model"), folder)
    for school in SCHOOLS:
        editor, deleted = prune(character, school)
        say(
            f"{school}: deleted {', '.join(deleted) or 'nothing'}; first caption: {editor.caption(editor.keys[0]).text}"
        )
        desk = TrainingDesk(host)
        desk.start(concept_job(folder / "pictures", name=school, steps=steps))
        view = desk.wait()
        if view is None or view.state != "finished":
            raise RuntimeError(f"the run ended: {view}")
        while any(not entry.undone for entry in editor.history.entries()):
            editor.undo()
        editor.history.close()
        assert {path: path.read_bytes() for path in character.glob("*.txt")} == before
    judge = Judge()
    return {
        name: {title: share(host, judge, prompt, name, seeds) for title, prompt in PROMPTS.items()}
        for name in ("no LoRA", *SCHOOLS)
    }


def share(host: StandaloneHost, judge: Judge, prompt: str, lora: str, seeds: int) -> float:
    """Of how many seeds the tagger's best colour is the trait."""
    mark = "" if lora == "no LoRA" else f" <lora:{lora}:1>"
    request = PreviewRequest(prompt + mark, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER)
    scores = judge.scores(host.draw_seeds(request, range(100, 100 + seeds)))
    return sum(judge.best(one, tuple(COLOURS))[0] == TRAIT for one in scores) / seeds


def table(shares: dict[str, dict[str, float]]) -> list[str]:
    """The figures as a Markdown table."""
    lines = [f"| {TRAIT} in | {' | '.join(PROMPTS)} |", "|---|" + "---|" * len(PROMPTS)]
    return lines + [
        f"| {name} | {' | '.join(f'{value:.0%}' for value in row.values())} |" for name, row in shares.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each run (default: 400)")
    parser.add_argument("--seeds", type=int, default=50, help="pictures of each prompt (default: 50)")
    options = parser.parse_args()
    print("\n".join(table(run(options.dir.absolute(), options.steps, options.seeds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
