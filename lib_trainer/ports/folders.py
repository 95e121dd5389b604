"""Where a host finds files by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Folders(Protocol):
    """The host's folders for results, templates and caches."""

    def lora_folder(self) -> Path:
        """Where a finished LoRA is found by the host's prompts."""

    def embedding_folder(self) -> Path:
        """Where an embedding is found by its name in a prompt."""

    def hypernetwork_folder(self) -> Path:
        """Where `<hypernet:name:1>` finds its file."""

    def checkpoint_folder(self) -> Path:
        """Where a whole checkpoint is found by the host's menu."""

    def prompt_files(self, folder: Path, endings: Sequence[str]) -> Mapping[str, Sequence[Path]]:
        """The files with one of the endings (in lower case) that prompts find in the host's folder for LoRAs,
        embeddings or hypernetworks, by the name (in NFC) that they call them by. Several of one name are in each
        other's way."""

    def model_folders(self) -> Mapping[str, Sequence[Path]]:
        """Where the host looks for "checkpoints", "loras" and "vaes": folders, with all that is below them, and single
        models. Neither need exist."""

    def template_folder(self) -> Path:
        """Where the host keeps templates for captions; it need not exist."""

    def cache_folder(self) -> Path:
        """Where latents may be kept between runs."""

    def added(self, path: Path) -> None:
        """Let the host find a file that a run has written to one of its folders. Called when the run has let go."""
