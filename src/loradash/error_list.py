"""Errors of several checks told at once, so that a user corrects all of them in one go."""

from collections.abc import Iterator
from contextlib import contextmanager

from loradash.errors import (
    InvalidAdapter,
    InvalidBaseModel,
    InvalidConfig,
    InvalidDataset,
    LoradashError,
    NotFound,
)

_OF_INPUT = (InvalidAdapter, InvalidBaseModel, InvalidConfig, InvalidDataset, NotFound)


class ErrorList:
    """What is wrong with the input, as several checks find it; other errors pass at once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._errors: list[LoradashError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an error of the block instead of raising it."""
        try:
            yield
        except _OF_INPUT as error:
            self._errors.append(error)

    def raise_all(self) -> None:
        """Raise what was noted: one error as it is, several as one that lists them."""
        if not self._errors:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        problems: list[str] = []
        for error in self._errors:
            problems.append(" ".join(filter(None, (f"{error.message}.", error.remedy))))
            problems += error.problems
        kinds = {type(error) for error in self._errors}
        kind = kinds.pop() if len(kinds) == 1 else InvalidConfig
        raise kind(
            f"{self._what}: {len(self._errors)} things are wrong",
            problems=problems,
            remedy="Correct each of them.",
        ) from self._errors[0]
