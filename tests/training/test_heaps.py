from __future__ import annotations

import subprocess
import sys

import pytest

from raydistill.training.heaps import HEAPS

THREADS = """
import ctypes, threading
from raydistill.training.heaps import share_heaps

if {sharing}:
    share_heaps()
library, everybody = ctypes.CDLL(None), threading.Barrier(9)
library.malloc.restype = ctypes.c_void_p

def allocate():
    library.malloc(1000)
    everybody.wait()

for thread in [threading.Thread(target=allocate) for _ in range(8)]:
    thread.start()
everybody.wait()
library.malloc_stats()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="heaps of glibc")
def test_threads_share_heaps() -> None:
    def heaps(sharing: bool) -> int:
        command = [sys.executable, "-c", THREADS.format(sharing=sharing)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr.count("Arena ")

    assert heaps(sharing=True) <= HEAPS < heaps(sharing=False)
