"""Large blocks are given back, though small objects lie between them."""

import ctypes
import subprocess
import sys

import pytest

_SCENE = """
import sys
from threading import Thread
import psutil
from loradash.allocator import return_large_blocks

if sys.argv[1] == "returned":
    return_large_blocks()
held = []
def use():
    bytes(2**25 - 2**13)  # freed at once: from now on such blocks come from a heap
    for _ in range(16):
        blocks = [b"x" * 2**24 for _ in range(2)]
        held.append(b"x" * 2000)  # small, and it stays
        blocks.pop(0)
        held.append(blocks and b"x" * 2000)
before = psutil.Process().memory_info().rss
threads = [Thread(target=use) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(psutil.Process().memory_info().rss - before)
"""


def _kept_mb(how):
    command = [sys.executable, "-c", _SCENE, how]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return int(run.stdout) / 2**20


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc keeps such blocks"
)
def test_freed_large_blocks_go_back_to_the_system():
    assert _kept_mb("kept") > 30, "glibc gives them back by itself: the setting isn't needed"
    assert _kept_mb("returned") < 10
