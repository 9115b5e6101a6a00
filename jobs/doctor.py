"""`kinotone doctor`: check what a run needs on this machine, and say how to fix what is missing."""

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
        ok: whether it is as needed.
        found: what was found.
        fix: how to fix it; "" when it is ok.
        needed: False when a run works without it, but slower or smaller.
    """

    what: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def report(console: Console) -> None:
    """Run the checks and print every finding.

    Args:
        console: where to print.

    Raises:
        ValueError: something that every run needs is missing. The command then exits with 2.
    """
    findings = [check() for check in CHECKS]
    for finding in findings:
        mark = "[green]ok[/]     " if finding.ok else "[red]missing[/]" if finding.needed else "[yellow]without[/]"
        console.print(f"  {mark}  {finding.what:<18} {finding.found}" + (f" → {finding.fix}" if finding.fix else ""))
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    if missing:
        raise ValueError(f"doctor: {missing[0].what}: {missing[0].found}; {missing[0].fix}")


def python_version() -> Finding:
    """Check the version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] in ((3, 11), (3, 12))
    return Finding("Python", ok, version, "" if ok else "use Python 3.11 or 3.12")


def packages() -> Finding:
    """Check that each core requirement of kinotone's metadata is installed; versions are not compared."""
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
    """Check for a C++ compiler."""
    path = shutil.which("g++")
    if path:
        return Finding("g++", True, "found")
    return Finding("g++", False, "not on the PATH", "apt-get install g++ (DeepSpeed compiles an op with it)")


def weights() -> Finding:
    """Check for the small weights of the demo. A run on real weights names them in its settings."""
    for name in packaged_weights.NAMES:
        try:
            packaged_weights.resolve(f"package:{name}")
        except ValueError as error:
            return Finding("demo weights", False, str(error), "make install, or name your own weights", needed=False)
    return Finding("demo weights", True, ", ".join(packaged_weights.NAMES))


def accelerator() -> Finding:
    """Check for a GPU."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        return Finding("GPU", True, f"{count} × {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each")
    return Finding("GPU", False, "none", "the tiny recipe trains on the CPU; others need GPUs", needed=False)


def memory() -> Finding:
    """Check the size of the main memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    ok = total >= 8
    return Finding("memory", ok, f"{total:.0f} GiB", "" if ok else "the demo needs 8 GiB", needed=False)


def disk() -> Finding:
    """Check the free space on the disk of the working directory."""
    free = shutil.disk_usage(".").free / GIB
    ok = free >= 5
    return Finding("disk here", ok, f"{free:.0f} GiB free", "" if ok else "free at least 5 GiB", needed=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python_version,
    packages,
    compiler,
    weights,
    accelerator,
    memory,
    disk,
)
