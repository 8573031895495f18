"""How the C library's allocator treats large blocks in a process that stays for weeks.

glibc keeps what is freed: once a block of up to 32 MB has been freed, blocks of that size come from
its heaps instead of the system (mallopt(3), "dynamic mmap threshold"), and one small object that
lives above them keeps all of them. Threads have heaps of their own, so that this happens many times
over. A server that has decoded large images would hold hundreds of megabytes for ever.
"""

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_ARENA_MAX = -8
_LARGE_BYTES = 2**20
_ARENAS = 2  # the GIL lets one thread at a time allocate anyway


def return_large_blocks() -> bool:
    """Make the allocator give back each freed block of a megabyte or more at once.

    Smaller ones share two heaps instead of having one a thread. Call it before threads start.
    A large block costs a system call and fresh pages each time, so this is for servers, not for
    what computes. False where the C library has no such settings (musl, macOS).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) and mallopt(_M_ARENA_MAX, _ARENAS))
