"""What a killed process leaves becomes this one's, and is ended."""

import subprocess
import sys

import psutil

# A parent that starts a child, tells its number and is killed.
PARENT = """
import subprocess, time
print(subprocess.Popen(["sleep", "300"]).pid, flush=True)
time.sleep(300)
"""
KEEPER = f"""
import os, subprocess, sys
from raysft.runs.processes import adopt_orphans, end_children
adopt_orphans()
parent = subprocess.Popen([sys.executable, "-c", {PARENT!r}], stdout=subprocess.PIPE, text=True)
child = int(parent.stdout.readline())
parent.kill()
parent.wait()
import psutil
print(child, psutil.Process(child).ppid() == os.getpid())
end_children()
print(psutil.pid_exists(child))
"""


def test_orphans_are_adopted_and_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEEPER], capture_output=True, text=True, check=True
    )
    (child, adopted), (left,) = (line.split() for line in done.stdout.splitlines())
    assert (adopted, left) == ("True", "False")
    assert not psutil.pid_exists(int(child))
