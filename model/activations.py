"""Memory of the activations in a training step of the transformer, in bytes, measured with fake tensors.

Fake tensors have shapes and no values, so a block of any size is traced within seconds on any machine. Autograd saves
for them what it saves on a device, because the same operations run. A compiled block may keep less.

Shapes: B batch, T tokens of a stream.
"""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from model.modality import Modality, audio_positions, video_positions
from model.transformer import DualStreamTransformer, TransformerConfig


@dataclass(frozen=True)
class Activations:
    """Sizes of activations, in bytes.

    Attributes:
        block: saved by one block for its backward pass.
        state: states of both streams between two blocks; a recomputed block saves nothing else.
        ends: saved outside the blocks (AdaLN rows, rotary tables, projected text).
        backward: allocated at the peak of a block's backward pass in addition to what the forward pass saved, without
            the gradients of weights.
    """

    block: int
    state: int
    ends: int
    backward: int

    def peak(self, blocks: int, recompute: int) -> int:
        """Return the bytes at the peak of a training step.

        Args:
            blocks: number of blocks.
            recompute: every n-th block is recomputed; 0 for none.
        """
        recomputed = len(range(0, blocks, recompute)) if recompute else 0
        saved = (blocks - recomputed) * self.block + recomputed * self.state
        # The backward pass begins with the last block. If that block is recomputed, its activations are added to all
        # saved ones. An earlier recomputed block uses the memory of a later block, which is free by then.
        last_is_recomputed = recomputed and (blocks - 1) % recompute == 0
        return self.ends + saved + self.backward + (self.block if last_is_recomputed else 0)


@lru_cache(maxsize=64)
def transformer_activations(
    config: TransformerConfig,
    grid: tuple[int, int, int],
    audio_tokens: int,
    text_tokens: int,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Activations:
    """Measure the activations of a forward and a backward pass with one timestep per sample.

    Args:
        config: of the transformer; the number of layers does not matter.
        grid: latent frames, height and width of the video.
        audio_tokens: per sample.
        text_tokens: per sample.
        batch: samples.
        dtype: of weights and activations.

    Returns:
        Sizes for one block, and for what is outside the blocks.
    """
    frames, height, width = grid
    # Make these before fake mode: they are cached, and later calls may need real values.
    positions = {
        "video": video_positions(frames, height, width, 24.0, batch=batch),
        "audio": audio_positions(audio_tokens, batch=batch),
    }
    with FakeTensorMode() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RopeCache reads addresses, about which fake tensors warn
        # Measure the second of two blocks: the number of the first may include tensors that are made only once.
        model = DualStreamTransformer(replace(config, num_layers=2))
        for parameter in model.parameters():  # `model.to` cannot swap fake tensors in torch 2.11
            parameter.data = parameter.data.to(dtype)
        sigma = torch.rand(batch)

        def modality(name: str, channels: int, text_width: int) -> Modality:
            """Return random input of one stream; `name` selects the positions."""
            place = mode.from_tensor(positions[name])
            latent = torch.randn(batch, place.shape[2], channels, dtype=dtype)
            context = torch.randn(batch, text_tokens, config.caption_channels or text_width, dtype=dtype)
            return Modality(latent, sigma[:, None], sigma, place, context)

        video = modality("video", config.in_channels, config.cross_attention_dim)
        audio = modality("audio", config.audio_in_channels, config.audio_cross_attention_dim)
        tracker = MemTracker()
        tracker.track_external(model, video.latent, audio.latent, video.context, audio.context)
        device = torch.device("cpu")

        def held(kind: str = "current") -> int:
            """Return the bytes of activations and temporary tensors, now ("current") or at most so far ("peak")."""
            found = tracker.get_tracker_snapshot(kind)[device]
            return sum(size for part, size in found.items() if part in ("Activation", "Temp", "Other"))

        with tracker:
            x_video, video_stream = model.prepare(video, audio, None, "")
            x_audio, audio_stream = model.prepare(audio, video, None, "audio_")
            state = x_video.nbytes + x_audio.nbytes
            after = [held()]
            for block in model.transformer_blocks:
                x_video, x_audio = block(x_video, x_audio, video_stream, audio_stream)
                after.append(held())
            gradients = [torch.empty_like(x) for x in (x_video, x_audio)]
            torch.autograd.backward([x_video, x_audio], gradients)
        return Activations(after[2] - after[1], state, after[0] - state, held("peak") - after[2])
