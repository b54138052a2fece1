from __future__ import annotations

import subprocess
import sys

import pytest

PIECES = """
import ctypes
from pathlib import Path
from raydistill.training.heaps import return_freed

def resident():
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
pieces = [library.malloc(1 << 16) for _ in range(2000)]
for piece in pieces:
    ctypes.memset(piece, 1, 1 << 16)
for piece in pieces[:-1]:
    library.free(piece)
before = resident()
return_freed()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc keeps what is freed")
def test_what_lies_below_something_that_is_held_goes_back() -> None:
    found = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 100_000  # KiB of 125 MiB
