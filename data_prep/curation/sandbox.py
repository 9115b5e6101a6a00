"""Curate in a child process, so that a codec that crashes or hangs makes one source fail and does not end the worker.

A worker has one child for all its sources. Each step of a source (`SpanWork`) is one message to the child and one back,
which takes about a millisecond; no process is started per clip. Three events end a child, and the next step starts a
new one:

- It crashes (a segmentation fault in a codec), or the kernel's out-of-memory killer ends it.
- It hangs: a timer of the kernel ends a process that has not called `beat` for `STALL_S`. The timer needs no thread and
  no lock of Python, so it also ends a codec in an endless loop and a process that does not release the interpreter.
- It allocates more than `MEMORY`: the kernel refuses. Most libraries then raise an error, which becomes a verdict like
  any other; the others crash.

A child whose worker has ended ends too. A step that ended its child is tried once more in a new child. When that one
dies too, the span gets the verdict `failed(quarantine, how it died)`, which is committed like any other, so that a
later run does not try it again.
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
from typing import Any, Literal

from data_prep.clip import Segment, describe
from data_prep.curation.span_work import SpanWork, curate_segment
from data_prep.dataset import storage, tar_members

STALL_S = 15.0  # seconds without a `beat` (a packet, a block or a finished stage) after which a child ends
REMOTE_STALL_S = 300.0  # the same for a source in an object store, whose reads are tried again for minutes
MEMORY = 1500 << 20  # bytes that a child may allocate in addition to its networks; the worker uses several 100 MB too
TRIES = 2  # of a step that ends its child
QUARANTINE = "quarantine"

Step = Literal["spans", "curate_span"]

_stall_s = 0.0  # set in a child while it runs a step; 0 means no alarm


def beat() -> None:
    """Report progress, so that the child is not ended as hanging. Outside of a sandbox's child it does nothing."""
    if _stall_s:
        signal.setitimer(signal.ITIMER_REAL, _stall_s)


class Sandbox:
    """A stage of a dataflow that curates segments in a child process.

    Args:
        build: makes the object that does the work; called in the child, so it must be picklable.
        stall_s: seconds without a `beat` after which the child is ended, for local sources.
        memory: bytes that the child may allocate after `build`.

    Raises:
        ValueError: `build` raised it in the child, for example because a setting is wrong.
        ChildProcessError: no child can be started, now or to replace one that ended; something is wrong with the
            machine.
    """

    def __init__(self, build: Callable[[], SpanWork], stall_s: float = STALL_S, memory: int = MEMORY) -> None:
        self._build, self._stall_s, self._memory = build, stall_s, memory
        self._child: _Child | None = None
        self._start()

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        """Return the segments with their clips and verdicts. Damaged media never raises."""
        return [curate_segment(self, segment) for segment in segments]

    def spans(self, segment: Segment) -> list[Segment]:
        """Return the spans of a segment, found in the child; one that ends `TRIES` children is returned as failed."""
        try:
            return self._ask("spans", segment)
        except _Died as deaths:
            return [segment.failed(QUARANTINE, str(deaths))]

    def curate_span(self, span: Segment) -> Segment:
        """Return the span, curated in the child; one that ends `TRIES` children is returned as failed."""
        try:
            return self._ask("curate_span", span)
        except _Died as deaths:
            return span.failed(QUARANTINE, str(deaths))

    def close(self) -> None:
        """End the child process, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ask(self, step: Step, segment: Segment) -> Any:
        """Run a step in the child and return its result; try again in a new child if the child ends.

        Raises:
            _Died: the step ended `TRIES` children.
        """
        file = segment.uri.rpartition("::")[2] if segment.uri.startswith(tar_members.PREFIX) else segment.uri
        stall_s = REMOTE_STALL_S if storage.is_remote(file) else self._stall_s
        deaths = []
        for _ in range(TRIES):
            try:
                return self._start().ask(step, segment, stall_s)
            except _Died as death:
                self.close()
                deaths.append(str(death))
        raise _Died(f"its decoder died {TRIES} times: {', then '.join(dict.fromkeys(deaths))}")

    def _start(self) -> "_Child":
        """Return the child; start one if there is none."""
        if self._child is None:
            self._child = _Child(self._build, self._memory)
        return self._child


class _Died(Exception):
    """Raised when the child ended before it answered; the message says how it ended."""


class _Child:
    """A child process and the worker's end of its socket. Only these two write to the socket, so pickles are safe."""

    def __init__(self, build: Callable[[], SpanWork], memory: int) -> None:
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

    def ask(self, step: Step, segment: Segment, stall_s: float) -> Any:
        """Run a step in the child and return its result, or raise its error; raise `_Died` if the child ended."""
        try:
            self._line.send((step, segment, stall_s))
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
        """Wait until the process has ended, and return how it ended, for a message."""
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return "no progress"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _serve(handle: int) -> None:
    """Run in the child: build the work once, then run the steps that the worker sends, until the worker has ended.

    Args:
        handle: file descriptor of the child's end of the socket.
    """
    global _stall_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the worker, and the worker ends the child
    line = Connection(handle)
    try:
        build, memory = line.recv()
        try:
            work = build()
        except Exception as error:
            line.send(error if isinstance(error, ValueError) else RuntimeError(describe(error)))
            return
        # Not RLIMIT_AS: libraries reserve gigabytes of address space that they never use.
        held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))
        line.send(None)
        while True:
            step, segment, _stall_s = line.recv()
            beat()
            try:
                answer = work.spans(segment) if step == "spans" else work.curate_span(segment)
            except Exception as error:
                answer = RuntimeError(describe(error))
            _stall_s = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)
            line.send(answer)
    except (EOFError, OSError):
        return
