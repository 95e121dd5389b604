"""The host's model files by short names, which a page offers in place of paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib_trainer.toolbox.duplicates import FOLDER, distinct, models_in

CHECKPOINTS, LORAS, VAES = "checkpoints", "loras", "vaes"
Folders = Callable[[], Mapping[str, Sequence[Path]]]


class Installed:
    """Models of `folders()`, each once, read when they are asked for; a name is the path within its folder, or the
    whole path where another folder has the same."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._paths: dict[str, Path] = {}

    def names(self) -> dict[str, list[str]]:
        """{kind: names}, read anew; "models" are all kinds, "folders" the folders themselves."""
        found: dict[str, list[str]] = {}
        paths: dict[str, Path] = {}
        for kind, places in self._folders().items():
            found[kind], seen = [], set[str]()
            for place in places:
                for path in distinct([place] if _is_model(place) else list(models_in(place))):
                    if os.path.realpath(path) in seen:
                        continue
                    seen.add(os.path.realpath(path))
                    short = path.name if path == place else str(path.relative_to(place))
                    name = short if paths.get(short, path) == path else str(path)
                    paths[name] = path
                    found[kind].append(name)
        self._paths = paths
        together = [name for kind in (CHECKPOINTS, LORAS, VAES) for name in found.get(kind, ())]
        found["models"] = list(dict.fromkeys(together))
        found["folders"] = [str(folder) for folder in self.folders()]
        return found

    def folders(self) -> list[Path]:
        """Every folder that is there, once; a folder that is a model is none."""
        known = {folder.absolute(): None for folders in self._folders().values() for folder in folders}
        return [folder for folder in known if folder.is_dir() and not _is_model(folder)]

    def path(self, text: str) -> str:
        """A name as the path that it is of, with what stands behind it (`:0.8`); what is no name stays."""
        begins = [name for name in self._paths if text == name or text.startswith(f"{name}:")]
        if not begins:
            return text
        name = max(begins, key=len)
        return f"{self._paths[name]}{text[len(name) :]}"


def _is_model(place: Path) -> bool:
    """Whether it stands for itself, and not for what is below it."""
    return place.is_file() or (place / FOLDER).is_file()
