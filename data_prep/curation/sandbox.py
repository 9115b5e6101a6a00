"""Curating in a child process: what a codec does to its process costs one source, not the worker.

A worker has one child, which lives as long as the worker does; a span of a source is a message there and one back, so
guarding costs about a millisecond a span and no process a clip. Three things end a child, and the next one starts
with the next span:

- It crashes (a segmentation fault in a codec), or the machine's out-of-memory killer takes it.
- It hangs: the kernel's alarm ends a process that has not called `beat` for `STALL_S`. No thread and no lock takes
  part, so neither a codec's endless loop nor a held interpreter lock can keep it alive, and a child whose worker is
  gone ends by itself.
- It allocates more than `MEMORY`: the kernel refuses, which most libraries turn into an error (a verdict like any
  other) and the rest into a crash.

A span that ends its child is tried once more, alone in a fresh one; when that dies too, the span's verdict is
`failed(quarantine, how it died)`. It is committed like any verdict, so a later run does not meet it again.
"""

import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from data_prep.clip import Segment, describe
from data_prep.dataset import storage, tar_members

STALL_S = 15.0  # seconds without a packet, a block or a stage done; a source that hangs twice costs half a minute
REMOTE_STALL_S = 300.0  # as above for a source behind a network, whose reads are tried again for minutes
MEMORY = 1500 << 20  # bytes a child may hold beside its networks; its worker holds a few hundred MB more
TRIES = 2
QUARANTINE = "quarantine"

_stall_s = 0.0


def beat() -> None:
    """Say that work goes on. Costs a system call in a guarded child and nothing elsewhere."""
    if _stall_s:
        signal.setitimer(signal.ITIMER_REAL, _stall_s)


class Work(Protocol):
    """What runs in the child."""

    def curate(self, segment: Segment) -> Segment | list[Segment]:
        """A segment with its clips and their verdicts; or, of a long one, the spans that are to be curated instead."""
        ...


class Sandbox:
    """A stage's callable whose work is done in a child process.

    Args:
        build: makes what does the work, inside the child; must be picklable by name.
        stall_s: seconds without a beat after which the child ends, for local sources.
        memory: bytes that the child may hold beside what it holds when it is built.

    Raises:
        ValueError: `build` raised it in the child: the user's mistake.
        ChildProcessError: no child can be started, now or when one is to be replaced: the machine is at fault.
    """

    def __init__(self, build: Callable[[], Work], stall_s: float = STALL_S, memory: int = MEMORY) -> None:
        self._build, self._stall_s, self._memory = build, stall_s, memory
        self._child: _Child | None = None
        self._start()

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """The segments with their clips and verdicts. Bad media never raises."""
        return [segment.through(self._ask) for segment in segments]

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ask(self, segment: Segment) -> Segment | list[Segment]:
        """The child's answer, or the quarantined segment."""
        file = segment.uri.rpartition("::")[2] if segment.uri.startswith(tar_members.PREFIX) else segment.uri
        stall_s = REMOTE_STALL_S if storage.is_remote(file) else self._stall_s
        deaths = []
        for _ in range(TRIES):
            try:
                return self._start().ask(segment, stall_s)
            except _Died as death:
                self.close()
                deaths.append(str(death))
        return segment.failed(QUARANTINE, f"its decoder died {TRIES} times: {', then '.join(dict.fromkeys(deaths))}")

    def _start(self) -> "_Child":
        if self._child is None:
            self._child = _Child(self._build, self._memory)
        return self._child


class _Died(Exception):
    """The child ended before it answered; says how."""


class _Child:
    """The worker's end: a process and a socket to it, over which both sides send pickles that they made themselves."""

    def __init__(self, build: Callable[[], Work], memory: int) -> None:
        here, there = socket.socketpair()
        command = f"from data_prep.curation.sandbox import _serve; _serve({there.fileno()})"
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._line = Connection(here.detach())
        try:
            self._line.send_bytes(pickle.dumps((build, memory)))
            answer = self._line.recv()
        except (EOFError, OSError):
            raise ChildProcessError(f"the decoding process could not start: {self._how()}") from None
        if isinstance(answer, Exception):
            self.end()
            raise answer

    def ask(self, segment: Segment, stall_s: float) -> Segment | list[Segment]:
        try:
            self._line.send((segment, stall_s))
            answer = self._line.recv()
        except (EOFError, OSError):
            raise _Died(self._how()) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self._line.close()
        self._process.kill()
        self._process.wait()

    def _how(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return "no progress"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _serve(handle: int) -> None:
    """The child's life: build once, then answer until the worker is gone."""
    global _stall_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's, whose end is ours
    line = Connection(handle)
    try:
        build, memory = line.recv()
        try:
            work = build()
        except Exception as error:
            line.send(error if isinstance(error, ValueError) else RuntimeError(describe(error)))
            return
        # Not RLIMIT_AS: libraries reserve address space by the gigabyte that they never touch.
        held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))
        line.send(None)
        while True:
            segment, _stall_s = line.recv()
            beat()
            try:
                answer = work.curate(segment)
            except Exception as error:
                answer = RuntimeError(describe(error))
            _stall_s = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)
            line.send(answer)
    except (EOFError, OSError):
        return
