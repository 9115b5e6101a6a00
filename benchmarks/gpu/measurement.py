"""What a measurement is: a function with a budget in seconds that reports figures, and what it reports them to.

A later issue adds one with the decorator in a module of its own, and names the module in `MODULES`:

    @measurement("training-arms", "Training arms", seconds=60)
    def training_arms(session: Session) -> None:
        session.figure("loss of arm a", value, "nats", aim=at_most(1.0))
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# In the order in which they run.
MODULES = (
    "benchmarks.gpu.machine",
    "benchmarks.gpu.correctness",
    "benchmarks.gpu.training_step",
    "benchmarks.gpu.denoising",
    "benchmarks.gpu.autoencoders",
)


@dataclass(frozen=True)
class Aim:
    """A bound set before the run: `sign` is "≤" or "≥"."""

    sign: str
    bound: float

    def met(self, value: float) -> bool:
        """Compare; NaN meets no aim."""
        return value <= self.bound if self.sign == "≤" else value >= self.bound


def at_most(bound: float) -> Aim:
    """The figure must not exceed `bound`."""
    return Aim("≤", bound)


def at_least(bound: float) -> Aim:
    """The figure must reach `bound`."""
    return Aim("≥", bound)


class Session:
    """Where a measurement runs and what it reports to.

    Attributes:
        device: "cuda" or, in a dry run, "cpu".
        dry: tiny sizes, to test the code and not the machine.
        output: folder for what lies beside the figures.
    """

    def __init__(self, device: str, dry: bool, output: Path, until: float, send: Callable[[dict[str, Any]], None]):
        self.device = torch.device(device)
        self.dry = dry
        self.output = output
        self._until = until
        self._send = send

    @property
    def gpu(self) -> bool:
        """Whether the figures are those of a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the measurement is stopped, whether done or not."""
        return self._until - time.monotonic()

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        aim: Aim | None = None,
        note: str = "",
        again: Callable[[], Any] | None = None,
    ) -> None:
        """Report one figure.

        Args:
            aim: an aim of the full sizes on a GPU; a dry run does not judge by it.
            again: runs what was measured once more. Where the aim is missed, its profile is written beside the figure.
        """
        judged = aim if self.gpu and not self.dry else None
        missed = judged is not None and not judged.met(value)
        record = {"name": name, "value": value, "unit": unit, "note": note}
        if judged is not None:
            record |= {"aim": asdict(judged), "met": not missed}
        self._send(record)
        if missed and again is not None:
            from benchmarks.gpu.timing import write_profile

            write_profile(again, name, self.output)

    def check(self, name: str, value: float, bound: float, note: str = "") -> None:
        """Report a relative error that must stay within `bound` on every device, dry run or not."""
        aim = at_most(bound)
        record = {"name": name, "value": value, "unit": "", "note": note, "aim": asdict(aim), "met": aim.met(value)}
        self._send(record)

    def not_measured(self, name: str, reason: str, *, failed: bool = True) -> None:
        """Report that a figure is missing, and why.

        Args:
            failed: the run counts as failed; False where the machine lacks what the figure is of.
        """
        self._send({"name": name, "value": None, "unit": "", "note": f"not measured: {reason}", "met": not failed})

    def attempt(self, name: str, run: Callable[[], Any], seconds: float = 0.0) -> bool:
        """Run one part of a measurement; an error becomes a record, so that the next part runs.

        Args:
            seconds: what the part needs; with less left it is not begun.

        Returns:
            Whether it ran to its end.
        """
        if self.left() < seconds:
            self.not_measured(name, f"{self.left():.0f} s left, {seconds:.0f} s needed")
            return False
        try:
            run()
        except Exception as error:  # the record says what failed
            lines = str(error).strip().splitlines() or [""]
            self.not_measured(name, f"{type(error).__name__}: {lines[0][:300]}")
            return False
        finally:
            if self.gpu:
                torch.cuda.empty_cache()
        return True


@dataclass(frozen=True)
class Measurement:
    """A function that measures, and how many seconds it may take on a GPU."""

    name: str
    title: str
    seconds: float
    run: Callable[[Session], None]


_registered: dict[str, Measurement] = {}


def measurement(
    name: str, title: str, *, seconds: float
) -> Callable[[Callable[[Session], None]], Callable[[Session], None]]:
    """Register a function as the measurement `name`."""

    def register(run: Callable[[Session], None]) -> Callable[[Session], None]:
        _registered[name] = Measurement(name, title, seconds, run)
        return run

    return register


def measurements() -> dict[str, Measurement]:
    """All of them by name, in the order in which they run."""
    for module in MODULES:
        importlib.import_module(module)
    return _registered
