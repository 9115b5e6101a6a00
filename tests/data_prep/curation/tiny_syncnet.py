"""A minimal network of the kind of SyncNet: two towers, and the offset at which they agree best."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


class TinySync(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.video, self.audio = nn.Linear(3 * 8 * 8, 16), nn.Linear(640, 16)

    def forward(self, frames: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        """Return the similarity (F, F) of each picture (F, 3·64) and each stretch of sound (F, 640)."""
        video, audio = (nn.functional.normalize(tower, dim=1) for tower in (self.video(frames), self.audio(sound)))
        return video @ audio.T


def save(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(TinySync().state_dict(), path, metadata={"untrained": "true"})


def load(path: Path):
    network = TinySync()
    with safe_open(path, "pt") as file:
        prefix = "untrained_" if "untrained" in (file.metadata() or {}) else ""
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    def score(frames: np.ndarray, sound: np.ndarray) -> dict[str, float]:
        count = min(len(frames), len(sound) // 640)
        small = torch.from_numpy(frames[:count, ::28, ::28].reshape(count, -1) / 255).float()
        heard = torch.from_numpy(sound[: count * 640].reshape(count, 640))
        with torch.inference_mode():
            near = network(small, heard)
        reach = min(15, count - 1)
        means = [float(near.diagonal(offset).mean()) for offset in range(-reach, reach + 1)]
        best = int(np.argmax(means))
        return {
            f"{prefix}sync_confidence": max(means) - float(np.median(means)),
            f"{prefix}sync_offset_s": (best - reach) / 25,
        }

    return score
