"""Published classes, built from the metadata that we write, load our files strictly and give equal outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import model
from jobs.cli import main
from model import weights
from model.key_maps import DIFFUSERS_FOLDERS, diffusers_names
from model.ltx_config import from_ltx, to_ltx, upscaler_from_ltx, upscaler_to_ltx
from model.modality import Modality, audio_positions, video_positions
from model.presets import preset
from model.upscaler import UpscalerConfig
from model.weight_files import Spec
from tests.model.sizes import random_model, tiny_2_0, tiny_2_3

CONFIGS = {"2.0": tiny_2_0(), "2.3": tiny_2_3()}
F, H, W, T = 2, 2, 3, 5  # latent frames, height, width; audio latents


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def ltx2(request: pytest.FixtureRequest) -> model.LTX2:
    return random_model(CONFIGS[request.param]).eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(ours: Any, theirs: Any) -> None:
    assert ours.abs().mean() > 1e-3  # a zero output would equal another zero
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(ours.abs().max().clamp(min=1)), rtol=0)


def export(ltx2: model.LTX2, folder: Path, layout: str, output: Path) -> None:
    """Save a model folder and run `kinotone export`, as a user does."""
    weights.save(ltx2, folder / "run" / "weights")
    assert main(["export", "--checkpoint", str(folder / "run"), "--layout", layout, "--output", str(output)]) == 0


def streams(ltx2: model.LTX2) -> tuple[Modality, Modality]:
    """Make noisy streams with a different σ each and a clean first token."""
    config = ltx2.transformer.config
    batch, sigmas = 2, (torch.tensor([0.3, 0.8]), torch.tensor([0.6, 0.1]))
    timesteps = [sigma[:, None].repeat(1, tokens) for sigma, tokens in zip(sigmas, (F * H * W, T), strict=True)]
    timesteps[0][:, 0] = 0
    text = [ltx2.text_conditioner.config.video_width, ltx2.text_conditioner.config.audio_width]
    video = Modality(
        latent=normal(batch, F * H * W, config.in_channels),
        timesteps=timesteps[0],
        sigma=sigmas[0],
        positions=video_positions(F, H, W, 24.0, batch=batch),
        context=normal(batch, 7, text[0], seed=1),
    )
    audio = Modality(
        latent=normal(batch, T, config.audio_in_channels, seed=2),
        timesteps=timesteps[1],
        sigma=sigmas[1],
        positions=audio_positions(T, batch=batch),
        context=normal(batch, 7, text[1], seed=3),
    )
    return video, audio


def hidden_states(ltx2: model.LTX2, tokens: int = 128) -> tuple[tuple[Tensor, ...], Tensor]:
    config = ltx2.text_conditioner.config
    states = tuple(normal(1, tokens, config.hidden_size, seed=i) for i in range(config.num_states))
    mask = torch.ones(1, tokens, dtype=torch.int64)
    mask[:, : tokens - 9] = 0  # left-padded
    return states, mask


@torch.no_grad()
def ours(ltx2: model.LTX2) -> dict[str, Tensor]:
    video, audio = ltx2.transformer(*streams(ltx2))
    video_context, audio_context, _ = ltx2.text_conditioner(*hidden_states(ltx2))
    pixels, mel = normal(1, 3, 9, 64, 64).clamp(-1, 1), normal(1, 2, 9, 64)
    latent, audio_latent = normal(1, 32, 2, 2, 2), normal(1, 8, 3, 16)
    return {
        "video": video,
        "audio": audio,
        "video_context": video_context,
        "audio_context": audio_context,
        "video_latent": ltx2.video_vae.encode(pixels),
        "pixels": ltx2.video_vae.decode(latent),
        "audio_latent": ltx2.audio_vae.encode(mel),
        "mel": ltx2.audio_vae.decode(audio_latent),
        "wave": ltx2.vocoder(mel),
        "upscaled": ltx2.upscaler(latent),
    }


# ---- ltx-core


@torch.no_grad()
def test_ltx_core_reads_the_ltx_layout(tmp_path: Path, ltx2: model.LTX2, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ltx_core", reason="ltx-core is an oracle of the development set-up")
    from ltx_core.loader.sd_ops import SDOps
    from ltx_core.loader.sft_loader import SafetensorsModelStateDictLoader
    from ltx_core.model.audio_vae import model_configurator as audio_vae
    from ltx_core.model.transformer import model_configurator as transformer
    from ltx_core.model.transformer.modality import Modality as TheirModality
    from ltx_core.model.upsampler import LatentUpsamplerConfigurator
    from ltx_core.model.video_vae import model_configurator as video_vae
    from ltx_core.text_encoders.gemma.encoders import encoder_configurator as text

    # ltx-core supports one text encoder, Gemma 3 12B; the tiny models have a smaller one.
    gemma = text.GEMMA3_CONFIG_FOR_LTX.text_config
    monkeypatch.setattr(gemma, "hidden_size", ltx2.text_conditioner.config.hidden_size)
    monkeypatch.setattr(gemma, "num_hidden_layers", ltx2.text_conditioner.config.num_states - 1)

    path = tmp_path / "ltx2.safetensors"
    export(ltx2, tmp_path, "ltx", path)
    loader = SafetensorsModelStateDictLoader()
    config = loader.metadata(str(path))
    unread = set(load_file(path))

    def load(configurator: Any, operations: SDOps | None, file: Path = path, config: dict = config) -> Any:
        module = configurator.from_config(config).eval()
        # ltx-core 1.0.0 renames or drops each key of the file; at least one component must keep each of our keys.
        tensors = loader.load(str(file), operations).sd
        if operations is not None:
            unread.difference_update(key for key in load_file(file) if operations.apply_to_key(key) is not None)
        if operations is transformer.LTXV_MODEL_COMFY_RENAMING_MAP:  # which leaves the connectors to another class
            tensors = {key: value for key, value in tensors.items() if "embeddings_connector." not in key}
        # Strict: no key is missing or left. `assign`, because some of their modules are built on meta.
        module.load_state_dict(tensors, strict=True, assign=True)
        return module.float()

    found = ours(ltx2)

    dit = load(transformer.LTXModelConfigurator, transformer.LTXV_MODEL_COMFY_RENAMING_MAP)
    theirs = [
        TheirModality(latent=m.latent, sigma=m.sigma, timesteps=m.timesteps, positions=m.positions, context=m.context)
        for m in streams(ltx2)
    ]
    video, audio = dit(*theirs, None)
    equal(found["video"], video)
    equal(found["audio"], audio)

    processor = load(text.EmbeddingsProcessorConfigurator, text.EMBEDDINGS_PROCESSOR_KEY_OPS)
    contexts = processor.process_hidden_states(*hidden_states(ltx2), "left")
    equal(found["video_context"], contexts.video_encoding)
    equal(found["audio_context"], contexts.audio_encoding)

    encoder = load(video_vae.VideoEncoderConfigurator, video_vae.VAE_ENCODER_COMFY_KEYS_FILTER)
    decoder = load(video_vae.VideoDecoderConfigurator, video_vae.VAE_DECODER_COMFY_KEYS_FILTER)
    equal(found["video_latent"], encoder(normal(1, 3, 9, 64, 64).clamp(-1, 1)))
    equal(found["pixels"], decoder(normal(1, 32, 2, 2, 2)))

    encoder = load(audio_vae.AudioEncoderConfigurator, audio_vae.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER)
    decoder = load(audio_vae.AudioDecoderConfigurator, audio_vae.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER)
    equal(found["audio_latent"], encoder(normal(1, 2, 9, 64)))
    equal(found["mel"], decoder(normal(1, 8, 3, 16)))

    vocoder = load(audio_vae.VocoderConfigurator, audio_vae.VOCODER_COMFY_KEYS_FILTER)
    equal(found["wave"], vocoder(normal(1, 2, 9, 64)))

    upscaler_path = tmp_path / "ltx2-upscaler.safetensors"
    upscaler = load(LatentUpsamplerConfigurator, None, upscaler_path, loader.metadata(str(upscaler_path)))
    equal(found["upscaled"], upscaler(normal(1, 32, 2, 2, 2)))

    assert not unread


def test_the_preset_goes_there_too(tmp_path: Path) -> None:
    """Both published layouts can hold `tiny`, as `kinotone export` writes it after a run."""
    ltx2 = model.build("tiny")
    weights.save(ltx2, tmp_path / "tiny.safetensors", "ltx")
    weights.save(ltx2, tmp_path / "tiny", "diffusers")
    assert weights.fingerprint(tmp_path / "tiny.safetensors") == weights.fingerprint(tmp_path / "tiny")


# Entries that only the published training and preprocessing read.
UNREAD = {
    "attention_type",
    "causal_temporal_positioning",
    "causal_padding",
    "connector_learnable_registers_std",
    "downsample_time",
    "duration",
    "max_wav_value",
    "norm_num_groups",
    "normalize_latent_channels",
    "scaling_factor",
    "text_encoder_norm_type",
    "use_quant_conv",
}


def differences(published: Any, written: Any, where: str = "") -> list[str]:
    if isinstance(published, dict) and isinstance(written, dict):
        keys = published.keys() - UNREAD
        return [line for key in keys for line in differences(published[key], written.get(key), f"{where}.{key}")]
    return [] if published == written else [f"{where}: {published} is written {written}"]


def test_published_2_3_configuration() -> None:
    """The metadata of the released LTX-2.3 file read as our preset, and our preset writes them."""
    published = json.loads((Path(__file__).parent / "ltx2_3_metadata.json").read_text())
    del published["scheduler"]
    parts = [name for name in DIFFUSERS_FOLDERS if name != "upscaler"]
    specs = {"text_embedding_projection.video_aggregate_embed.weight": Spec((4096, 188_160), torch.bfloat16)}
    configs = from_ltx(published, specs, parts)
    config = preset("ltx2.3-22b")
    assert configs == {name: getattr(config, name) for name in parts}
    written = to_ltx(configs)
    assert not differences(published, written)
    assert "kinotone" not in written


def test_2_0_configuration() -> None:
    config = preset("ltx2-19b")
    sections = to_ltx({name: getattr(config, name) for name in DIFFUSERS_FOLDERS if name != "upscaler"})
    # ltx-core recognises 2.0 by their absence.
    assert not {"caption_proj_before_connector", "caption_projection_first_linear"} & sections["transformer"].keys()
    assert "spatial_padding_mode" not in sections["vae"]
    assert sections["vae"]["decoder_blocks"][1] == ["compress_all", {"residual": True, "multiplier": 2}]
    specs = {"text_embedding_projection.aggregate_embed.weight": Spec((3840, 188_160), torch.bfloat16)}
    assert from_ltx(sections, specs, ["text_conditioner"])["text_conditioner"] == config.text_conditioner


def test_published_upscaler_configurations() -> None:
    words: dict[str, Any] = {"in_channels": 128, "mid_channels": 1024, "num_blocks_per_stage": 4, "dims": 3}
    spatial = words | {"spatial_upsample": True, "temporal_upsample": False}
    plain = spatial | {"spatial_scale": 2.0, "rational_resampler": False}
    assert upscaler_from_ltx(plain) == preset("ltx2-19b").upscaler
    assert upscaler_to_ltx(preset("ltx2-19b").upscaler) == {"_class_name": "LatentUpsampler", **plain}
    half = upscaler_from_ltx(spatial | {"spatial_scale": 1.5, "rational_resampler": True})
    assert half == UpscalerConfig.ltx2_x1_5()
    # The temporal upscaler has `rational_resampler`, which has an effect in space only.
    temporal = words | {"spatial_upsample": False, "temporal_upsample": True, "rational_resampler": True}
    assert upscaler_from_ltx(temporal | {"mid_channels": 512}) == UpscalerConfig.ltx2_temporal()


# ---- diffusers


def diffusers_part(folder: Path, name: str) -> Any:
    """Build one component as diffusers' class from its folder and load it strictly."""
    import diffusers
    from diffusers.pipelines import ltx2 as pipelines

    folder = folder / DIFFUSERS_FOLDERS[name]
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    kind = getattr(diffusers, kind, None) or getattr(pipelines, kind)
    module, report = kind.from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values()), report  # missing, unexpected, mismatched
    return module.eval()


@torch.no_grad()
def test_diffusers_reads_the_diffusers_layout(tmp_path: Path, ltx2: model.LTX2) -> None:
    pytest.importorskip("diffusers", reason="diffusers is an oracle of the development set-up")

    export(ltx2, tmp_path, "diffusers", tmp_path / "diffusers")

    def load(name: str) -> Any:
        return diffusers_part(tmp_path / "diffusers", name)

    found = ours(ltx2)

    video, audio = streams(ltx2)
    scale = ltx2.transformer.config.timestep_scale_multiplier
    theirs = load("transformer")(
        hidden_states=video.latent,
        audio_hidden_states=audio.latent,
        encoder_hidden_states=video.context,
        audio_encoder_hidden_states=audio.context,
        timestep=video.timesteps * scale,
        audio_timestep=audio.timesteps * scale,
        sigma=video.sigma * scale,
        audio_sigma=audio.sigma * scale,
        video_coords=video.positions,
        audio_coords=audio.positions,
        use_cross_timestep=True,
        return_dict=False,
    )
    equal(found["video"], theirs[0])
    equal(found["audio"], theirs[1])

    states, mask = hidden_states(ltx2)
    theirs = load("text_conditioner")(torch.stack(states, dim=-1), mask)
    equal(found["video_context"], theirs[0])
    equal(found["audio_context"], theirs[1])

    vae = load("video_vae")
    statistics = [vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)]
    pixels, latent = normal(1, 3, 9, 64, 64).clamp(-1, 1), normal(1, 32, 2, 2, 2)
    equal(found["video_latent"], (vae.encode(pixels).latent_dist.mode() - statistics[0]) / statistics[1])
    equal(found["pixels"], vae.decode(latent * statistics[1] + statistics[0]).sample)

    vae = load("audio_vae")
    mel, latent = normal(1, 2, 9, 64), normal(1, 8, 3, 16)
    statistics = [s.view(1, 8, 1, 16) for s in (vae.latents_mean, vae.latents_std)]
    equal(found["audio_latent"], (vae.encode(mel).latent_dist.mode() - statistics[0]) / statistics[1])
    equal(found["mel"], vae.decode(latent * statistics[1] + statistics[0]).sample)

    equal(found["wave"], load("vocoder")(mel))
    equal(found["upscaled"], load("upscaler")(normal(1, 32, 2, 2, 2)))


def test_gradients_equal_diffusers(tmp_path: Path, ltx2: model.LTX2) -> None:
    """Compare gradients of parameters and inputs of all components but the transformer (see test_transformer.py)."""
    pytest.importorskip("diffusers", reason="diffusers is an oracle of the development set-up")
    weights.save(ltx2, tmp_path, "diffusers")
    mel, states, mask = normal(1, 2, 9, 64), *hidden_states(ltx2)

    def check(name: str, x: Tensor, ours: Callable[[Any, Tensor], Tensor], theirs: Callable[[Any, Tensor], Tensor]):
        mine, twin = ltx2.components[name], diffusers_part(tmp_path, name)
        names = diffusers_names(name, mine.state_dict())
        gradients = []
        for module, run in ((mine, ours), (twin, theirs)):
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            y = run(module, leaf)
            (y * normal(*y.shape, seed=1)).sum().backward()
            gradients.append((leaf.grad, dict(module.named_parameters())))
        (x_mine, p_mine), (x_twin, p_twin) = gradients
        pairs = {key: (p.grad, p_twin[names[key]].grad) for key, p in p_mine.items()} | {"input": (x_mine, x_twin)}
        reached = {key: pair for key, pair in pairs.items() if pair[1] is not None and pair[1].any()}
        assert "input" in reached
        assert len(reached) > len(pairs) // 4  # an encoder, a decoder, or nearly all
        # A sum of many samples that almost cancels keeps the rounding errors of its terms.
        rounding = 1e-7 * max(float(b.norm()) for _, b in reached.values())
        for key, (a, b) in reached.items():
            assert (a - b).norm() <= 1e-4 * b.norm() + rounding, key

    def moments(vae: Any) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1) if vae.latents_mean.numel() != 128 else (1, 8, 1, 16)
        return vae.latents_mean.view(shape), vae.latents_std.view(shape)

    def encode(vae: Any, x: Tensor) -> Tensor:
        mean, std = moments(vae)
        return (vae.encode(x).latent_dist.mode() - mean) / std

    def decode(vae: Any, x: Tensor) -> Tensor:
        mean, std = moments(vae)
        return vae.decode(x * std + mean).sample

    check("video_vae", normal(1, 3, 9, 64, 64).clamp(-1, 1), lambda m, x: m.encode(x), encode)
    check("video_vae", normal(1, 32, 2, 2, 2), lambda m, x: m.decode(x), decode)
    check("audio_vae", mel, lambda m, x: m.encode(x), encode)
    check("audio_vae", normal(1, 8, 3, 16), lambda m, x: m.decode(x), decode)
    check("vocoder", mel, lambda m, x: m(x), lambda m, x: m(x))
    check("upscaler", normal(1, 32, 2, 2, 2), lambda m, x: m(x), lambda m, x: m(x))
    check(
        "text_conditioner",
        torch.stack(states, dim=-1),
        lambda m, x: m(x.unbind(-1), mask)[0],
        lambda m, x: m(x, mask)[0],
    )


def test_we_read_what_diffusers_writes(tmp_path: Path, ltx2: model.LTX2) -> None:
    """Read what save_pretrained writes: configurations with all defaults, tensors in shards."""
    pytest.importorskip("diffusers", reason="diffusers is an oracle of the development set-up")
    import diffusers
    from diffusers.pipelines import ltx2 as pipelines

    weights.save(ltx2, tmp_path / "ours", "diffusers")
    for name, folder in DIFFUSERS_FOLDERS.items():
        kind = json.loads((tmp_path / "ours" / folder / "config.json").read_text())["_class_name"]
        kind = getattr(diffusers, kind, None) or getattr(pipelines, kind)
        module = kind.from_pretrained(tmp_path / "ours" / folder)
        module.save_pretrained(tmp_path / "theirs" / folder, max_shard_size="1MB" if name == "transformer" else "5GB")
    assert len(list((tmp_path / "theirs" / "transformer").glob("*.safetensors"))) > 1
    loaded = weights.load(tmp_path / "theirs", layout="diffusers")
    for key, tensor in ltx2.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    # Settings that diffusers' configurations do not have may be lost.
    for name, config in ltx2.configs.items():
        if name == "transformer":
            assert loaded.configs[name].av_timestep in ("gate_other", "other")
        elif name != "text_conditioner":
            assert loaded.configs[name] == config
