"""Commands of the command line as processes of their own, forked from one that has imported everything.

A process that starts anew imports for seven processor seconds before it does anything; a fork has a command line,
environment, descriptors and exit status of its own as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SERVER = """
import json, os, sys
from workflows.cli import main
import workflows.analysis, workflows.formats, workflows.report, workflows.planning.summary, workflows.results.compact
import workflows.regression.check, workflows.regression.compare, workflows.assets.catalogue, workflows.assets.datasets
import workflows.engine.execution, workflows.engine.run, workflows.regression.texts

def child(case):
    os.environ.update(case.get("env", {}))
    for number, end in case["ends"].items():
        if end == "closed":
            os.close(int(number))
            setattr(sys, ("stdin", "stdout", "stderr")[int(number)], None)
            continue
        if end == "pipe":
            read, target = os.pipe()
            os.close(read)
        else:
            target = os.open(end, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, int(number))
        os.close(target)
        stream = os.fdopen(int(number), "w", encoding=case.get("encoding", "utf-8"), closefd=False)
        setattr(sys, ("stdin", "stdout", "stderr")[int(number)], stream)
    sys.argv = ["puregrid", *case["command"]]
    main()

def status_of(case):
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            child(case)
        except SystemExit as error:
            status = error.code or 0
        except BaseException as error:
            sys.stderr and print("Traceback", repr(error), file=sys.stderr, flush=True)
            status = 99
        for stream in (sys.stdout, sys.stderr):  # as the interpreter does at its end
            try:
                stream and stream.flush()
            except BaseException:
                status = 120
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for line in sys.stdin:
    print(json.dumps([status_of(case) for case in json.load(open(line.strip()))]), flush=True)
"""


class Forks:
    """The process that forks, which works in ``folder``."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process

    def run(self, cases: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
        """Status, stdout and stderr of each case; "" where these went elsewhere.

        Arguments:
            cases: Each with its ``command``, and perhaps ``env``: further variables; ``encoding`` of the streams;
                ``ends``: by number of a descriptor the file that it is, ``pipe`` that nobody reads, or ``closed``.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        own = [[self.folder / f"{number}.{end}" for end in ("out", "err")] for number in range(len(cases))]
        usual = [{"1": str(out), "2": str(err)} for out, err in own]
        given = [{**case, "ends": {**ends, **case.get("ends", {})}} for case, ends in zip(cases, usual, strict=True)]
        (self.folder / "cases.json").write_text(json.dumps(given))
        self.process.stdin.write("cases.json\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        found = []
        for status, files in zip(statuses, own, strict=True):
            out, err = (file.read_text(errors="replace") if file.exists() else "" for file in files)
            found.append((int(status), out, err))
            for file in files:
                file.unlink(missing_ok=True)
        (self.folder / "cases.json").unlink()
        return found


@contextmanager
def forks(folder: Path, environment: Mapping[str, str]) -> Iterator[Forks]:
    """Start it, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forks(folder, process)
    finally:
        process.communicate(timeout=300)  # it ends with its input
