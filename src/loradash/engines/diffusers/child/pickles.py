"""No pickle is read, whatever a library falls back to: reading one can run what it holds.

diffusers and transformers have an argument for it (``use_safetensors``), but a single file is read
by its ending, and parts that it lacks come from wherever they are. All of them read a pickle by
`torch.load`, so that is what refuses here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch


class PickleRefused(Exception):
    """A library wanted to read a pickle; it is told to users by who asked the library."""


@contextmanager
def no_pickles() -> Iterator[None]:
    """Let no library of this program read a pickle within the block; raises `PickleRefused`."""
    with patch.object(torch, "load", _refuse), patch.object(torch.serialization, "load", _refuse):
        yield


def wanted_pickle(error: BaseException) -> bool:
    """Whether a library failed because it may not read a pickle; they pack errors into others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PickleRefused):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise PickleRefused("only safetensors files are read")
