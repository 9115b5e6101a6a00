"""What the card itself reaches: the ceilings that every other figure is read against."""

import torch

from benchmarks.gpu.measurement import Session, measurement
from benchmarks.gpu.timing import median_seconds


@measurement("machine", "The card's own ceilings", seconds=30)
def machine(session: Session) -> None:
    """Rates of a large matrix product in bf16 and of a large copy on the device."""
    side, elements = (256, 2**16) if session.dry else (8192, 2**31)
    a, b = (torch.randn(side, side, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    product = median_seconds(lambda: a @ b, session.device, repeat=10)
    session.figure(f"bf16 product of {side} × {side}", 2 * side**3 / product / 1e12, "TFLOP/s")
    source = torch.empty(elements, device=session.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), session.device, repeat=10)
    session.figure("copy on the device, read and written", 2 * source.nbytes / copy / 1e12, "TB/s")
