"""The host's model files by short names, which a page offers in place of paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib_trainer.toolbox.duplicates import distinct, models_in

CHECKPOINTS, LORAS, VAES = "checkpoints", "loras", "vaes"
Folders = Callable[[], Mapping[str, Sequence[Path]]]


class Installed:
    """Files of `folders()`, read when they are asked for; a name is the path within its folder, or the whole path where
    another folder has the same."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._paths: dict[str, Path] = {}

    def names(self) -> dict[str, list[str]]:
        """{kind: names}, read anew; "models" are all kinds, "folders" the folders themselves."""
        found: dict[str, list[str]] = {}
        paths: dict[str, Path] = {}
        for kind, folders in self._folders().items():
            found[kind] = []
            for folder in folders:
                for path in sorted(distinct(sorted(models_in(folder)))):
                    short = str(path.relative_to(folder))
                    name = short if paths.get(short, path) == path else str(path)
                    paths[name] = path
                    found[kind].append(name)
        self._paths = paths
        found["models"] = [name for kind in (CHECKPOINTS, LORAS, VAES) for name in found.get(kind, ())]
        found["folders"] = [str(folder) for folder in self.folders()]
        return found

    def folders(self) -> list[Path]:
        """Every folder that is there, once."""
        known = {folder.absolute(): None for folders in self._folders().values() for folder in folders}
        return [folder for folder in known if folder.is_dir()]

    def path(self, text: str) -> str:
        """A name as the path that it is of, with what stands behind it (`:0.8`); what is no name stays."""
        begins = [name for name in self._paths if text == name or text.startswith(f"{name}:")]
        if not begins:
            return text
        name = max(begins, key=len)
        return f"{self._paths[name]}{text[len(name) :]}"
