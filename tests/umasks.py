"""Another umask for a while; it is the whole program's."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
