"""Python processes that are forks of one that has loaded trimtab and its compiled kernels.

Loading both takes a second each time, which is most of what a short command takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SERVER = """
import json, os, sys, tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout

import httpx
import trimtab
from trimtab.cli import main

with tempfile.TemporaryDirectory() as folder, chdir(folder), open(os.devnull, "w") as nothing:
    with redirect_stdout(nothing), redirect_stderr(nothing):
        for command in ("example", "delta make base tuned -o x", "delta apply base x -o out"):
            try:
                main(command.split())
            except SystemExit as end:
                assert not end.code, command
assert "huggingface_hub" not in sys.modules  # it reads the environment when it is imported
print("ready", flush=True)
for line in sys.stdin:
    if not os.fork():
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
request = json.loads(line)
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["folder"])
for stream, path in enumerate((os.devnull, *request["outputs"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
sys.argv = ["-c", *request["arguments"]]
exec(request["code"], {"__name__": "__main__"})
"""


class Forks:
    """A server that runs code in forks of itself, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.outputs = [folder / name for name in ("out", "err")]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def run(
        self, code: str, *arguments: str, folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run code as `python -c CODE ARGUMENTS…` does, in a folder and an environment."""
        for path in self.outputs:
            path.unlink(missing_ok=True)
        request = {
            "code": code,
            "arguments": arguments,
            "folder": str(folder),
            "environment": dict(environment),
            "outputs": [*map(str, self.outputs)],
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        code_of_process = int(self._answer())
        out, err = (path.read_text("utf-8") for path in self.outputs)
        return subprocess.CompletedProcess(arguments, code_of_process, out, err)

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def close(self) -> None:
        """End the server."""
        self.server.communicate()
