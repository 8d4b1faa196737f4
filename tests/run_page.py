"""Runs the blocks of a page in this interpreter's environment, in the current folder: python tests/run_page.py BLOCKS.json

BLOCKS.json is a list of {"where", "language", "text", "file", "keeps"}. Python blocks share one scope; a bash block is one
shell, which stops at the first command that fails. A block that fails does not stop the others: each is reported on
stdout, the last line is a JSON list of those that failed, and the exit code says whether there are any. Needs nothing but
Python, since the environment has only what the page installs.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

PATIENCE = 120  # seconds until a program that keeps running must have printed a line


def shell(text: str) -> str | None:
    """What is wrong with a bash block; None where nothing is."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], stdin=subprocess.DEVNULL)
    return f"exit code {done.returncode}" if done.returncode else None


def python(text: str, where: str, scope: dict) -> str | None:
    try:
        exec(compile(text, where, "exec"), scope)
    except (Exception, SystemExit):
        return traceback.format_exc()
    return None


def started(text: str, running: list[subprocess.Popen]) -> str | None:
    """Starts a bash block, and waits for its first line."""
    program = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    running.append(program)
    assert program.stdout
    if not select.select([program.stdout], [], [], PATIENCE)[0] or not (line := program.stdout.readline()):
        return "it printed no line"
    print(line.decode(), end="")
    return None


def main() -> int:
    sys.path[0] = ""  # what a reader writes lies in the current folder
    blocks, scope = json.loads(Path(sys.argv[1]).read_text()), {"__name__": "__main__"}
    running: list[subprocess.Popen] = []
    failed = []
    for block in blocks:
        print(f"=== {block['where']}\n{block['text']}", flush=True)
        begin = time.monotonic()
        if block["file"]:
            Path(block["file"]).write_text(block["text"])
            wrong = None
        elif block["keeps"]:
            wrong = started(block["text"], running)
        elif block["language"] == "bash":
            wrong = shell(block["text"])
        else:
            wrong = python(block["text"], block["where"], scope)
        print(f"=== {time.monotonic() - begin:.1f} s{f', FAILED: {wrong}' if wrong else ''}", flush=True)
        if wrong:
            failed.append(f"{block['where']}: {wrong}")
    for program in running:
        if program.poll() is not None:
            failed.append(f"a program that should keep running ended with the exit code {program.returncode}")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
        program.wait()
    print(json.dumps(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
