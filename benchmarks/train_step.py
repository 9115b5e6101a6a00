"""Forward and backward of our transformer and of diffusers' class: same configuration, weights, inputs and process.

    python -m benchmarks.train_step                         # the preset `small`, 200M parameters, in its 2.3 form
    python -m benchmarks.train_step --release 2.0 --timesteps sample
    python -m benchmarks.train_step --device cuda --preset ltx2-19b --blocks 8 --compile

The two run by turns, so that whatever else the machine does falls on both. Time is the median of a whole step: forward,
mean square loss on both streams, backward; no optimizer. Peak memory is what a step adds to the weights, gradients
included, as CUDA's allocator counts it on a GPU and as PyTorch's allocator does on a CPU (in a step that is not timed).
TFLOP/s and MFU count the model's own operations (`model.flops`), three times the forward's, and not what recomputation
adds.
"""

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.timing import peak_tflops, wait
from model.flops import transformer_flops
from model.key_maps import diffusers_names
from model.modality import Modality, audio_positions, video_positions
from model.presets import PRESETS, preset
from model.transformer import DualStreamTransformer, TransformerConfig


@dataclass(frozen=True)
class Inputs:
    video: Modality
    audio: Modality
    grid: tuple[int, int, int]
    fps: float


def make_inputs(
    config: TransformerConfig,
    grid: tuple[int, int, int],
    audio_tokens: int,
    text_tokens: int,
    *,
    batch: int = 1,
    per_token: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Random tokens of both streams, the same on every device.

    Args:
        grid: latent frames, height and width of the video; tokens are per sample.
        per_token: the first frame is given (timestep 0), as in image-to-video training; else a sample has one timestep.
    """
    f, h, w = grid
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sigma = torch.rand(batch, generator=generator).to(device)

    def modality(positions: Tensor, channels: int, text_width: int, given: int) -> Modality:
        tokens = positions.shape[2]
        timesteps = sigma[:, None].expand(batch, tokens)
        if per_token:
            timesteps = timesteps * (torch.arange(tokens, device=device) >= given)
        context = noise(batch, text_tokens, config.caption_channels or text_width)
        return Modality(noise(batch, tokens, channels), timesteps, sigma, positions, context)

    place = video_positions(f, h, w, 24.0, batch=batch, device=device)
    audio_place = audio_positions(audio_tokens, batch=batch, device=device)
    return Inputs(
        video=modality(place, config.in_channels, config.cross_attention_dim, h * w),
        audio=modality(audio_place, config.audio_in_channels, config.audio_cross_attention_dim, 0),
        grid=grid,
        fps=24.0,
    )


def of_release(config: TransformerConfig, release: str) -> TransformerConfig:
    """The configuration as the release "2.0" or "2.3" has it, and A↔V timesteps as diffusers has them."""
    newer = release == "2.3"
    return replace(
        config,
        av_timestep="own",
        apply_gated_attention=newer,
        cross_attention_adaln=newer,
        caption_channels=None if newer else config.caption_channels or 3840,
    )


def diffusers_twin(ours: DualStreamTransformer, **extra: Any) -> nn.Module:
    """Build diffusers' class with our configuration and our weights.

    Args:
        ours: transformer to copy.
        extra: further arguments of diffusers' class.
    """
    from diffusers import LTX2VideoTransformer3DModel  # pyright: ignore[reportPrivateImportUsage]

    c = ours.config
    twin = LTX2VideoTransformer3DModel(
        in_channels=c.in_channels,
        out_channels=c.out_channels,
        num_attention_heads=c.num_attention_heads,
        attention_head_dim=c.attention_head_dim,
        cross_attention_dim=c.cross_attention_dim,
        audio_in_channels=c.audio_in_channels,
        audio_out_channels=c.audio_out_channels,
        audio_num_attention_heads=c.audio_num_attention_heads,
        audio_attention_head_dim=c.audio_attention_head_dim,
        audio_cross_attention_dim=c.audio_cross_attention_dim,
        num_layers=c.num_layers,
        caption_channels=c.caption_channels or 0,
        use_prompt_embeddings=c.caption_channels is not None,
        gated_attn=c.apply_gated_attention,
        audio_gated_attn=c.apply_gated_attention,
        cross_attn_mod=c.cross_attention_adaln,
        audio_cross_attn_mod=c.cross_attention_adaln,
        rope_type="split",
        **extra,
    )
    parameter = next(ours.parameters())
    twin = twin.to(device=parameter.device, dtype=parameter.dtype)  # pyright: ignore[reportCallIssue]
    names = diffusers_names("transformer", ours.state_dict())
    twin.load_state_dict({names[key]: value for key, value in ours.state_dict().items()})
    return twin


def ours_step(model: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    def step() -> Tensor:
        video, audio = model(inputs.video, inputs.audio)
        return video.float().square().mean() + audio.float().square().mean()

    return step


def diffusers_step(model: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    video, audio = inputs.video, inputs.audio
    # Given per sample where they are per sample: diffusers then makes one row of modulation, as we do.
    alike = video.timesteps.stride(1) == 0
    timestep, audio_timestep = (
        (m.timesteps[:, 0] if alike else m.timesteps).contiguous() * 1000 for m in (video, audio)
    )
    arguments: dict[str, Any] = {
        "hidden_states": video.latent,
        "audio_hidden_states": audio.latent,
        "encoder_hidden_states": video.context,
        "audio_encoder_hidden_states": audio.context,
        "timestep": timestep,
        "audio_timestep": audio_timestep,
        "sigma": video.sigma * 1000,
        "audio_sigma": audio.sigma * 1000,
        "num_frames": inputs.grid[0],
        "height": inputs.grid[1],
        "width": inputs.grid[2],
        "fps": inputs.fps,
        "audio_num_frames": audio.latent.shape[1],
        "return_dict": False,
    }

    def step() -> Tensor:
        video_out, audio_out = model(**arguments)
        return video_out.float().square().mean() + audio_out.float().square().mean()

    return step


def run(step: Callable[[], Tensor], model: nn.Module, device: torch.device) -> tuple[float, float]:
    """One step: (seconds, loss)."""
    model.zero_grad(set_to_none=True)
    wait(device)
    start = time.perf_counter()
    loss = step()
    loss.backward()
    wait(device)
    return time.perf_counter() - start, loss.item()


def peak_memory(step: Callable[[], Tensor], model: nn.Module, device: torch.device) -> float:
    """Bytes that one step adds to the weights at its peak, gradients included."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step().backward()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step().backward()
    model.zero_grad(set_to_none=True)
    recorded: Any = profile.profiler
    events = [(e.start_ns(), e.nbytes()) for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(events, key=lambda event: event[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument(
        "--release", default="2.3", choices=["2.0", "2.3"], help="2.3: gated attention, text modulated by timestep"
    )
    parser.add_argument("--blocks", type=int, default=None, help="number of blocks (default: the preset's)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--grid", type=int, nargs=3, default=None, metavar=("F", "H", "W"), help="video latents")
    parser.add_argument("--audio-tokens", type=int, default=None)
    parser.add_argument("--text-tokens", type=int, default=None)
    parser.add_argument(
        "--timesteps",
        default="token",
        choices=["sample", "token"],
        help="token: each its own, as where frames are given; sample: one for all tokens of a sample",
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--compile", action="store_true", help="torch.compile every block, of both")
    parser.add_argument("--checkpoint", action="store_true", help="recompute every block in backward, of both")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    dtype = getattr(torch, args.dtype or ("bfloat16" if gpu else "float32"))
    args.grid = args.grid or ([16, 16, 24] if gpu else [4, 16, 16])
    args.audio_tokens = args.audio_tokens or (126 if gpu else 64)
    args.text_tokens = args.text_tokens or (1024 if gpu else 256)
    config = of_release(preset(args.preset).transformer, args.release)
    config = replace(config, num_layers=args.blocks or config.num_layers)

    torch.manual_seed(0)
    with device:
        ours = DualStreamTransformer(config).to(dtype)
    for parameter in ours.parameters():  # zeros would let gradients vanish
        nn.init.normal_(parameter, std=0.02)
    theirs = diffusers_twin(ours)
    per_token = args.timesteps == "token"
    f, h, w = args.grid
    sizes = ((f, h, w), args.audio_tokens, args.text_tokens)
    inputs = make_inputs(config, *sizes, batch=args.batch, per_token=per_token, device=device, dtype=dtype)
    if args.checkpoint:
        ours.set_activation_checkpointing(1)
        theirs.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
    if args.compile:
        ours.compile_blocks()
        for block in theirs.transformer_blocks:  # pyright: ignore[reportGeneralTypeIssues]
            block.compile()
    pair = {"ours": (ours, ours_step(ours, inputs)), "diffusers": (theirs, diffusers_step(theirs, inputs))}

    parameters = sum(p.numel() for p in ours.parameters())
    tokens = args.grid[0] * args.grid[1] * args.grid[2]
    print(
        f"{args.preset} as {args.release}, {config.num_layers} blocks, {parameters / 1e6:.1f} M parameters, {dtype}, "
        f"batch {args.batch}, {tokens} video + {args.audio_tokens} audio + {args.text_tokens} text tokens, "
        f"timesteps per {args.timesteps}"
        f"{', compiled' if args.compile else ''}{', recomputed' if args.checkpoint else ''}"
    )
    place = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {place}")
    for name, (model, step) in pair.items():
        run(step, model, device)  # warm-up
        _, loss = run(step, model, device)
        print(f"{name}: loss {loss:.6f}")
    times: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(args.steps):
        for name, (model, step) in pair.items():
            times[name].append(run(step, model, device)[0])
            model.zero_grad(set_to_none=True)
    flops = (
        3
        * transformer_flops(
            config, tokens, args.audio_tokens, args.text_tokens, batch=args.batch, per_token=per_token
        ).total
    )
    peak = peak_tflops(device)
    rows = {}
    for name, (model, step) in pair.items():
        seconds = statistics.median(times[name])
        memory = peak_memory(step, model, device)
        rows[name] = (seconds, memory)
        rate = flops / seconds / 1e12
        mfu = f", MFU {100 * rate / peak:.1f} %" if peak else ""
        spread = f"{min(times[name]):.4f} to {max(times[name]):.4f}"
        print(f"{name}: {seconds:.4f} s/step ({spread}), {memory / 2**20:.1f} MiB peak, {rate:.4f} TFLOP/s{mfu}")
    print(
        f"ours / diffusers: time {rows['ours'][0] / rows['diffusers'][0]:.3f}, "
        f"memory {rows['ours'][1] / rows['diffusers'][1]:.3f}"
    )


if __name__ == "__main__":
    main()
