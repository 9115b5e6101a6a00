"""Seconds and bytes of a step on the device, and the profile of one that misses its aim."""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Dense bf16 peak of the tensor cores, TFLOP/s, for MFU.
PEAK_TFLOPS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}


def wait(device: torch.device) -> None:
    """Block until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device, *, warm_up: int = 2, repeat: int = 5) -> list[float]:
    """Wall-clock seconds of `repeat` runs, each awaited, after `warm_up` runs that are not counted."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeat):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return times


def median_seconds(run: Callable[[], Any], device: torch.device, *, warm_up: int = 2, repeat: int = 5) -> float:
    """Median of `seconds`."""
    return statistics.median(seconds(run, device, warm_up=warm_up, repeat=repeat))


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a run holds at its peak beyond what was held before; 0 on a CPU, which is not asked."""
    if device.type != "cuda":
        run()
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_tflops(device: torch.device) -> float | None:
    """The card's dense bf16 peak by its data sheet; None for one that is not listed."""
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_name(device)
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)


def write_profile(run: Callable[[], Any], name: str, output: Path, *, rows: int = 40) -> Path:
    """Profile one run and write its kernels by time, and where the device waited, to `profile-NAME.txt`."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in recorded.events() or ()
        if event.device_type == DeviceType.CUDA
    )
    key = "self_cuda_time_total" if kernels else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=110)
    path = output / f"profile-{''.join(c if c.isalnum() else '-' for c in name)}.txt"
    path.write_text(f"{name}\n\n{_gaps(kernels)}\n\n{table}\n")
    return path


def _gaps(kernels: list[tuple[float, float, str]], most: int = 10) -> str:
    """How long the device was idle between kernels, and the longest waits. Times are in microseconds."""
    if not kernels:
        return "no kernels were recorded"
    busy_until, idle, waits = kernels[0][0], 0.0, []
    for start, end, name in kernels:
        if start > busy_until:
            idle += start - busy_until
            waits.append((start - busy_until, name))
        busy_until = max(busy_until, end)
    span = busy_until - kernels[0][0]
    lines = [f"{len(kernels)} kernels in {span / 1e3:.2f} ms; the device was idle for {idle / 1e3:.2f} ms of it"]
    lines += [f"  {wait_us:9.1f} µs before {name[:110]}" for wait_us, name in sorted(waits, reverse=True)[:most]]
    return "\n".join(lines)
