"""Progress of a verb: one line per stage, with its count, its elapsed time and its remaining time.

In a terminal the lines update in place. Elsewhere (a log file, CI) each stage prints a line when it begins, every 30 s,
and when it ends.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

EVERY_S = 30.0  # between two lines of one stage where the output is not a terminal


class Display:
    """Shows progress; call it as `display(stage, done, total, note)`. A new name begins a new stage."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._moving = self.console.is_terminal
        self._bars = Progress(
            TextColumn("  {task.description:<34}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> "Display":
        if self._moving:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._moving:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of a stage are complete."""
        now = time.monotonic()
        new = stage not in self._began
        self._began.setdefault(stage, now)
        if self._moving:
            if new:
                self._tasks[stage] = self._bars.add_task(stage, total=total or None, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)
        elif new or done == total or now - self._said.get(stage, 0.0) >= EVERY_S:
            self._said[stage] = now
            self.console.print(f"  {stage:<34} {done}/{total}  {now - self._began[stage]:.0f} s  {note}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the progress lines."""
        self.console.print(text)
