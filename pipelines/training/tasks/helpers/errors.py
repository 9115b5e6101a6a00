"""Error measures per sample for several tasks: error of edges, error of coarser pictures, and PSNR."""

import torch
import torch.nn.functional as F
from torch import Tensor


def edge_error(x: Tensor, y: Tensor) -> Tensor:
    """Return (B,): mean absolute error of the differences between neighbours, summed over the dimensions after C.

    A dimension of length 1 (the time of a still) has no neighbours and is left out.

    Args:
        x: (B, C, …).
        y: of the same shape.
    """
    dims = [dim for dim in range(2, x.ndim) if x.shape[dim] > 1]
    return sum(((x.diff(dim=d) - y.diff(dim=d)).abs().flatten(1).mean(1) for d in dims), x.new_zeros(()))


def pyramid_error(x_bcfhw: Tensor, y_bcfhw: Tensor) -> Tensor:
    """Return (B,): mean absolute error of averages over blocks of 8 × 8 and of 32 × 32 pixels, summed."""
    blocks = F.avg_pool3d(x_bcfhw - y_bcfhw, (1, 8, 8))
    return sum((d.abs().flatten(1).mean(1) for d in (blocks, F.avg_pool3d(blocks, (1, 4, 4)))), x_bcfhw.new_zeros(()))


@torch.no_grad()
def psnr_db(x: Tensor, y: Tensor) -> Tensor:
    """Return (B,): peak signal-to-noise ratio of pixels in [−1, 1], dB; x is clamped to that range."""
    mse = (x.clamp(-1, 1) - y).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp(min=1e-10))
