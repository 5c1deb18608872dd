"""A process killed before each of its calls that open, write, rename or remove a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, shutil, sys
import concurrent.futures.thread, json, xxhash, zstandard
import trimtab

start, folders, code, stride = sys.argv[1:]
shutil.copytree(start, f"{folders}.warm")  # so that no child loads compiled kernels
exec(code, {"trimtab": trimtab, "folder": f"{folders}.warm"})

def run(folder, left):
    def count():
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

    def audit(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            if folder in str(arguments[0]):
                count()

    def profile(frame, event, function):
        if event == "c_call" and function.__name__ in ("write", "flush", "fsync"):
            count()

    sys.addaudithook(audit)
    sys.setprofile(profile)
    exec(code, {"trimtab": trimtab, "folder": folder})

for step in range(0, 2000, int(stride)):
    folder = f"{folders}/{step}"
    shutil.copytree(start, folder)
    if not (child := os.fork()):
        try:
            run(folder, step)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    code_of_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code_of_child != -9:
        sys.exit(code_of_child)
"""


def killed_at_every_step(
    start: Path, folders: Path, code: str, *, stride: int = 1
) -> tuple[list[Path], Path]:
    """Run code on copies of a folder, each killed at one call later than the one before.

    Args:
        start: The folder as it is before.
        folders: Where the copies are made.
        code: Python; it sees `trimtab`, and the path of its copy as `folder`.
        stride: By how many calls later; 1 for every call.

    Returns:
        The copies whose processes were killed, and the one whose process ended by itself.
    """
    folders.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, start, folders, code, str(stride)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *killed, last = sorted(folders.iterdir(), key=lambda folder: int(folder.name))
    return killed, last
