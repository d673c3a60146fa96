"""What ``keep_freed_memory`` promises."""

import platform
import subprocess
import sys

CHILD = """
import resource, sys
from safe_framework.utils.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        held = [b"x" * (24 * 2**20) for _ in range(3)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
print(faults())
"""


def faults(how: str) -> int:
    """Pages that the system had to clear for blocks that had been there before."""
    told = subprocess.run(
        [sys.executable, "-c", CHILD, how], check=True, capture_output=True, text=True
    )
    return int(told.stdout)


def test_freed_memory_is_used_again():
    """With glibc, blocks that were freed come back as they are; nothing is done elsewhere."""
    kept = faults("keep")
    assert kept < 100 if platform.libc_ver()[0] == "glibc" else kept >= 0
    assert kept <= faults("leave")
