"""What torch and the system raise, as errors of our tree."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loradash.errors import LoradashError, OutOfMemory
from loradash.storage.disk import as_disk_full


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what torch and the system raise into errors of our tree; let ours pass."""
    try:
        yield
    except LoradashError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory() from error
    except Exception as error:
        if full := as_disk_full(error, "Free space; it goes on when it is resumed."):
            raise full from error
        text = str(error)
        if isinstance(error, RuntimeError):
            if "can't allocate memory" in text or "out of memory" in text:
                raise _out_of_memory() from error
            text = next(iter(text.splitlines()), "")
        raise LoradashError(f"{type(error).__name__}: {text}") from error


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory(
        "not enough memory for this training",
        remedy="Lower train.batch_size or the resolution, switch gradient_checkpointing on, or use "
        "bf16.",
    )
