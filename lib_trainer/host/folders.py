"""The folders of a host that keeps every sort of file below one of its own."""

from __future__ import annotations

from pathlib import Path


class FoldersBelow:
    """Most of `ports.Folders`. None of these need exist."""

    root: Path

    def lora_folder(self) -> Path:
        return self.root / "lora"

    def embedding_folder(self) -> Path:
        return self.root / "embeddings"

    def hypernetwork_folder(self) -> Path:
        return self.root / "hypernetworks"

    def checkpoint_folder(self) -> Path:
        return self.root / "checkpoints"

    def template_folder(self) -> Path:
        return self.root / "templates"

    def cache_folder(self) -> Path:
        return self.root / "cache"
