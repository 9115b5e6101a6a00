"""`kinotone doctor`: what a run needs, whether this machine has it, and how to fix what is missing."""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from data_prep import packaged_weights

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        well: whether it is as a run needs it.
        found: what was found.
        fix: what to do where it is not well.
        needed: False for what only makes a run faster or larger.
    """

    what: str
    well: bool
    found: str
    fix: str = ""
    needed: bool = True


def report(console: Console) -> None:
    """Run every check and print its finding.

    Args:
        console: where to print.

    Raises:
        ValueError: something that every run needs is missing (the command then exits with 2).
    """
    findings = [check() for check in CHECKS]
    for finding in findings:
        mark = "[green]ok[/]     " if finding.well else "[red]missing[/]" if finding.needed else "[yellow]without[/]"
        console.print(f"  {mark}  {finding.what:<18} {finding.found}" + (f" → {finding.fix}" if finding.fix else ""))
    missing = [finding for finding in findings if finding.needed and not finding.well]
    if missing:
        raise ValueError(f"doctor: {missing[0].what}: {missing[0].found}; {missing[0].fix}")


def python_version() -> Finding:
    """Check that Python is 3.11 or 3.12."""
    version = ".".join(map(str, sys.version_info[:3]))
    well = sys.version_info[:2] in ((3, 11), (3, 12))
    return Finding("Python", well, version, "" if well else "use Python 3.11 or 3.12")


def packages() -> Finding:
    """Check that every core requirement in Kinotone's package metadata is installed, by name."""
    missing = []
    requirements = importlib.metadata.requires("kinotone") or []
    core = [requirement for requirement in requirements if "extra ==" not in requirement]
    for requirement in core:
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert found, f"a requirement without a name: {requirement!r}"
        try:
            importlib.metadata.version(found.group())
        except importlib.metadata.PackageNotFoundError:
            missing.append(found.group())
    if missing:
        return Finding("packages", False, f"not installed: {', '.join(missing)}", "make install")
    return Finding("packages", True, f"{len(core)} of {len(core)} core packages")


def compiler() -> Finding:
    """Check for g++, with which DeepSpeed compiles its CPU ops."""
    path = shutil.which("g++")
    if path:
        return Finding("g++", True, "found")
    return Finding("g++", False, "not on the PATH", "apt-get install g++ (DeepSpeed compiles an op with it)")


def weights() -> Finding:
    """Check the small weights of the demo. A run on real weights names its own."""
    for name in packaged_weights.NAMES:
        try:
            packaged_weights.resolve(f"package:{name}")
        except ValueError as error:
            return Finding("demo weights", False, str(error), "make install, or name your own weights", needed=False)
    return Finding("demo weights", True, ", ".join(packaged_weights.NAMES))


def accelerator() -> Finding:
    """Check for a GPU; reports its count, name and memory."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        return Finding("GPU", True, f"{count} × {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each")
    return Finding("GPU", False, "none", "the tiny recipe trains on the CPU; others need GPUs", needed=False)


def memory() -> Finding:
    """Check that the machine has 8 GiB of memory, as the demo needs."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    well = total >= 8
    return Finding("memory", well, f"{total:.0f} GiB", "" if well else "the demo needs 8 GiB", needed=False)


def disk() -> Finding:
    """Check that 5 GiB are free on the disk of the working directory."""
    free = shutil.disk_usage(".").free / GIB
    well = free >= 5
    return Finding("disk here", well, f"{free:.0f} GiB free", "" if well else "free at least 5 GiB", needed=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python_version,
    packages,
    compiler,
    weights,
    accelerator,
    memory,
    disk,
)
