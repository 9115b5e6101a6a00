"""What a block of full width really holds, beside what `kinotone plan` says it will.

    python -m benchmarks.activations                      # ltx2-19b's widths, bf16, 768 video tokens
    python -m benchmarks.activations --grid 16 16 24      # on a GPU

Two blocks run forward and backward. Counted are the bytes that a second block adds while forward has run and backward
has not, by CUDA's allocator on a GPU and by the profiler's record of every allocation on a CPU.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch

from benchmarks.train_step import make_inputs
from model.activations import transformer_activations
from model.presets import PRESETS, preset
from model.transformer import DualStreamTransformer, TransformerConfig


def saved_bytes(
    config: TransformerConfig,
    grid: tuple[int, int, int],
    audio_tokens: int,
    text_tokens: int,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> int:
    """Bytes alive after a forward beyond weights and inputs."""
    model = DualStreamTransformer(config).to(device, dtype)
    inputs = make_inputs(config, grid, audio_tokens, text_tokens, batch=batch, device=device, dtype=dtype)
    video, audio = inputs.video, inputs.audio
    model(video, audio)  # the rotary tables, which later steps find made
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        out = model(video, audio)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            out = model(video, audio)
        recorded: Any = profile.profiler
        held = sum(e.nbytes() for e in recorded.kineto_results.events() if e.name() == "[memory]")
    del out
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="ltx2-19b", choices=PRESETS)
    parser.add_argument("--grid", type=int, nargs=3, default=[3, 16, 16], metavar=("F", "H", "W"), help="video latents")
    parser.add_argument("--audio-tokens", type=int, default=126)
    parser.add_argument("--text-tokens", type=int, default=1024)
    args = parser.parse_args()
    config, sizes = preset(args.preset).transformer, (tuple(args.grid), args.audio_tokens, args.text_tokens)
    one, two = (saved_bytes(replace(config, num_layers=n), *sizes, device=args.device) for n in (1, 2))
    planned = transformer_activations(config, *sizes).block
    print(
        f"{args.preset}, {args.grid[0] * args.grid[1] * args.grid[2]} video + {args.audio_tokens} audio + "
        f"{args.text_tokens} text tokens, bf16, {args.device}\n"
        f"a block holds {(two - one) / 2**20:.1f} MiB, planned {planned / 2**20:.1f} MiB: {planned / (two - one):.3f}"
    )


if __name__ == "__main__":
    main()
