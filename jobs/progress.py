"""The progress display of a verb: one line per stage, with its count, elapsed time and remaining time.

In a terminal the lines are progress bars. Elsewhere (a log file, CI) each stage prints a line when it starts, every
30 s, and when it ends. The output of libraries stays in their logs.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

EVERY_S = 30.0  # between two lines of one stage when the output is not a terminal


class Display:
    """The progress display. Use it as a context manager, and call it as `display(stage, done, total, note)`.

    A call with a new stage name adds a line.

    Args:
        console: where to print; None: stderr.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._is_terminal = self.console.is_terminal
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
        self._started_at: dict[str, float] = {}
        self._printed_at: dict[str, float] = {}

    def __enter__(self) -> "Display":
        if self._is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of a stage.

        Args:
            stage: the stage's name.
            done: the items that are done.
            total: the number of items; 0: unknown.
            note: further text at the end of the line.
        """
        now = time.monotonic()
        new = stage not in self._started_at
        self._started_at.setdefault(stage, now)
        if self._is_terminal:
            if new:
                self._tasks[stage] = self._bars.add_task(stage, total=total or None, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)
        elif new or done == total or now - self._printed_at.get(stage, 0.0) >= EVERY_S:
            self._printed_at[stage] = now
            self.console.print(f"  {stage:<34} {done}/{total}  {now - self._started_at[stage]:.0f} s  {note}".rstrip())

    def say(self, text: str) -> None:
        """Print a text above the progress bars."""
        self.console.print(text)
