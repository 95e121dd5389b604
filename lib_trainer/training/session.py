"""The model in training state with what has been learned on it, and the way out of that state for a preview."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from lib_trainer.ports import LoadedModel, TrainingState
from lib_trainer.training.recipes import Recipe


class Session:
    """Context manager over `LoadedModel.training` and `Recipe.applied`, which a preview may leave and enter again."""

    def __init__(self, model: LoadedModel, recipe: Recipe, state: TrainingState) -> None:
        self._model, self._recipe, self._state = model, recipe, state
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._model.training(self._state))
            stack.enter_context(self._recipe.applied())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """The model as its host generates with it, plus what has been learned so far."""
        self._stack.close()
        with self._recipe.previewed():
            yield
        self.__enter__()
