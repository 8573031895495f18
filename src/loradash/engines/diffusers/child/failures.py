"""What torch and the system raise, as errors of our tree."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loradash.errors import DiskFull, LoradashError, OutOfMemory


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what torch and the system raise into errors of our tree; let ours pass."""
    try:
        yield
    except LoradashError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory() from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "the disk is full", remedy="Free disk space, then resume the training."
            ) from error
        raise LoradashError(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise _out_of_memory() from error
        if "No space left on device" in str(error):
            raise DiskFull(
                "the disk is full", remedy="Free disk space, then resume the training."
            ) from error
        raise LoradashError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        raise LoradashError(f"{type(error).__name__}: {error}") from error


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory(
        "not enough memory for this training",
        remedy="Lower train.batch_size or the resolution, switch gradient_checkpointing on, or use "
        "bf16.",
    )
