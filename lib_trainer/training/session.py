"""The model of a run with what has been learned on it, from its first picture to its last step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from lib_trainer.kinds.recipe import Recipe
from lib_trainer.ports import HeldModel, LoadedModel, TrainingState
from lib_trainer.training.graphs import Graphs


class Session:
    """Context manager over `LoadedModel.holding` and `Recipe.applied`. It begins ready to encode pictures and captions;
    `train` makes it ready for steps, and a preview may leave that state and enter it again. What `graphs` has recorded
    goes whenever weights may get another place.
    """

    def __init__(self, model: LoadedModel, recipe: Recipe, state: TrainingState, graphs: Graphs | None = None) -> None:
        self._model, self._recipe, self._state, self.graphs = model, recipe, state, graphs
        self._holding, self._applied = contextlib.ExitStack(), contextlib.ExitStack()
        self._held: HeldModel
        self._text_encoder = True

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as stack:
            self._held = stack.enter_context(self._model.holding(self._state, self._recipe.make_room))
            self._apply()
            self._holding = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._forget()
        finally:
            try:
                self._applied.__exit__(kind, error, trace)
            finally:
                self._holding.__exit__(kind, error, trace)

    def train(self, *, text_encoder: bool) -> None:
        """From now on steps are trained, with captions encoded at each or not: what is not used leaves the device."""
        self._forget()
        self._text_encoder = text_encoder
        self._held.train(text_encoder=text_encoder)

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """The model as its host generates with it, plus what has been learned so far."""
        self._forget()
        self._applied.close()
        self._held.generate()
        with self._recipe.previewed():
            yield
        self.resume()

    def resume(self) -> None:
        """Ready for steps again, also after `generating` has ended with an error."""
        self._held.train(text_encoder=self._text_encoder)
        self._apply()

    def _apply(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._recipe.applied())
            self._applied = stack.pop_all()

    def _forget(self) -> None:
        if self.graphs is not None:
            self.graphs.forget()
