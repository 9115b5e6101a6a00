"""Convert each component's configuration to and from the config.json of diffusers' class.

Settings that diffusers' classes do not have (the timesteps of A↔V attention, the least length of a text context) go
into an entry `kinotone` of the config.json, and only where they are not the default; diffusers warns of it and ignores
it.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.audio_vae import AudioVAEConfig
from model.ltx_config import check_audio_statistics, expect, plain, take, upscaler
from model.text_conditioner import TextConditionerConfig
from model.transformer import TransformerConfig
from model.upscaler import UpscalerConfig
from model.video_vae import VideoVAEConfig
from model.vocoder import VocoderConfig, VocoderWithBWEConfig

Section = dict[str, Any]

_CLASSES = {
    "LTX2VideoTransformer3DModel": "transformer",
    "LTX2TextConnectors": "text_conditioner",
    "AutoencoderKLLTX2Video": "video_vae",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
    "LTX2VocoderWithBWE": "vocoder",
    "LTX2LatentUpsamplerModel": "upscaler",
}


def component_of(diffusers_class: str, where: Path) -> str:
    """Return the component of a diffusers class; raises ValueError, naming `where`, for another class."""
    if diffusers_class not in _CLASSES:
        raise ValueError(f"{where}: {diffusers_class} is not a class of LTX-2; known classes are {', '.join(_CLASSES)}")
    return _CLASSES[diffusers_class]


def to_diffusers(name: str, config: Any) -> Section:
    """Convert a component's configuration to its config.json.

    Raises:
        ValueError: diffusers' class cannot build a network of these sizes.
    """
    return _WRITERS[name](config)


def from_diffusers(name: str, section: Mapping[str, Any]) -> Any:
    """Convert a config.json to the component's configuration.

    Raises:
        ValueError: a value describes a network that this package cannot build.
    """
    return _READERS[name](dict(section))


def _to_theirs(config: Any, names: Mapping[str, str], prefix: str = "") -> Section:
    """Return fields of a configuration as JSON values under diffusers' names.

    Args:
        config: of a component.
        names: {our name: diffusers' name}.
        prefix: before each name of diffusers.
    """
    return {prefix + theirs: plain(getattr(config, ours)) for ours, theirs in names.items()}


def _to_ours(section: Mapping[str, Any], names: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    """Return the entries of a config.json that are there, under our names; arguments as in `_to_theirs`."""
    return {ours: section[prefix + theirs] for ours, theirs in names.items() if prefix + theirs in section}


def _check_rope_type(section: Section, where: str) -> None:
    """Raise ValueError unless the entry `rope_type` is there and is "split"."""
    if take(section, where, "rope_type") != "split":  # it must be there: diffusers' default is another
        raise ValueError(f"{where}.rope_type is {section['rope_type']!r}; only 'split' is supported")


def _check_equal(section: Section, where: str, first: str, second: str) -> None:
    """Raise ValueError unless the entries `first` and `second` are equal; a missing one counts as False."""
    if section.get(first, False) != section.get(second, False):
        raise ValueError(f"{where}.{first} and {where}.{second} differ; supported is both or none")


# ---- transformer

# Our name → diffusers' name, for entries whose values are the same.
_TRANSFORMER_NAMES = {
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "attention_head_dim": "attention_head_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "cross_attention_dim": "cross_attention_dim",
    "audio_num_attention_heads": "audio_num_attention_heads",
    "audio_attention_head_dim": "audio_attention_head_dim",
    "audio_in_channels": "audio_in_channels",
    "audio_out_channels": "audio_out_channels",
    "audio_cross_attention_dim": "audio_cross_attention_dim",
    "norm_eps": "norm_eps",
    "positional_embedding_theta": "rope_theta",
    "timestep_scale_multiplier": "timestep_scale_multiplier",
    "av_ca_timestep_scale_multiplier": "cross_attn_timestep_scale_multiplier",
    "apply_gated_attention": "gated_attn",
    "cross_attention_adaln": "cross_attn_mod",
}
_TRANSFORMER_CONSTANTS: Section = {
    "patch_size": 1,
    "patch_size_t": 1,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "vae_scale_factors": [8, 32, 32],
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16_000,
    "audio_hop_length": 160,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "rope_double_precision": True,
    "causal_offset": 1,
}


def _extra(section: Section, name: str, default: Any) -> Any:
    """Return a setting from the entry `kinotone`, or `default` where it has none."""
    return section.get("kinotone", {}).get(name, default)


def _transformer(config: TransformerConfig) -> Section:
    """Return the config.json of the transformer."""
    section: Section = {"_class_name": "LTX2VideoTransformer3DModel", **_TRANSFORMER_CONSTANTS, "rope_type": "split"}
    section |= _to_theirs(config, _TRANSFORMER_NAMES)
    seconds, height, width = config.positional_embedding_max_pos
    section |= {
        "audio_gated_attn": config.apply_gated_attention,
        "audio_cross_attn_mod": config.cross_attention_adaln,
        "pos_embed_max_pos": seconds,
        "base_height": height,
        "base_width": width,
        "audio_pos_embed_max_pos": config.audio_positional_embedding_max_pos[0],
        "use_prompt_embeddings": config.caption_channels is not None,
    }
    if config.caption_channels is not None:
        section["caption_channels"] = config.caption_channels
    if config.av_timestep != TransformerConfig.av_timestep:
        section["kinotone"] = {"av_timestep": config.av_timestep}
    return section


def _read_transformer(section: Section) -> TransformerConfig:
    """Convert the config.json of the transformer to its configuration."""
    where = "transformer"
    expect(section, where, _TRANSFORMER_CONSTANTS)
    _check_rope_type(section, where)
    _check_equal(section, where, "gated_attn", "audio_gated_attn")
    _check_equal(section, where, "cross_attn_mod", "audio_cross_attn_mod")
    captions = section.get("caption_channels", 3840) if section.get("use_prompt_embeddings", True) else None
    return TransformerConfig(
        caption_channels=captions,
        positional_embedding_max_pos=(
            section.get("pos_embed_max_pos", 20),
            section.get("base_height", 2048),
            section.get("base_width", 2048),
        ),
        audio_positional_embedding_max_pos=(section.get("audio_pos_embed_max_pos", 20),),
        av_timestep=_extra(section, "av_timestep", TransformerConfig.av_timestep),
        **_to_ours(section, _TRANSFORMER_NAMES),
    )


# ---- text conditioner

_TEXT_NAMES = {
    "hidden_size": "caption_channels",
    "num_states": "text_proj_in_factor",
    "per_modality_projections": "per_modality_projections",
    "connector_num_attention_heads": "video_connector_num_attention_heads",
    "connector_attention_head_dim": "video_connector_attention_head_dim",
    "connector_num_layers": "video_connector_num_layers",
    "audio_connector_num_attention_heads": "audio_connector_num_attention_heads",
    "audio_connector_attention_head_dim": "audio_connector_attention_head_dim",
    "audio_connector_num_layers": "audio_connector_num_layers",
    "connector_apply_gated_attention": "video_gated_attn",
    "connector_num_learnable_registers": "video_connector_num_learnable_registers",
}
_TEXT_CONSTANTS: Section = {"rope_theta": 10_000.0, "rope_double_precision": True, "causal_temporal_positioning": False}


def _text(config: TextConditionerConfig) -> Section:
    """Return the config.json of the text conditioner; raises ValueError where its sizes do not fit."""
    if not config.per_modality_projections and config.video_width != config.hidden_size:
        raise ValueError(
            f"text_conditioner.video_width is {config.video_width}; one projection for both streams has room for "
            f"hidden_size, {config.hidden_size}, only in the diffusers layout"
        )
    section: Section = {"_class_name": "LTX2TextConnectors", **_TEXT_CONSTANTS, "rope_type": "split"}
    section |= _to_theirs(config, _TEXT_NAMES)
    section |= {
        "audio_gated_attn": config.connector_apply_gated_attention,
        "audio_connector_num_learnable_registers": config.connector_num_learnable_registers,
        "connector_rope_base_seq_len": config.connector_positional_embedding_max_pos[0],
        "proj_bias": config.per_modality_projections,
    }
    if config.per_modality_projections:
        section |= {"video_hidden_dim": config.video_width, "audio_hidden_dim": config.audio_width}
    if config.context_tokens != TextConditionerConfig.context_tokens:
        section["kinotone"] = {"context_tokens": config.context_tokens}
    return section


def _read_text(section: Section) -> TextConditionerConfig:
    """Convert the config.json of the text conditioner to its configuration."""
    where = "connectors"
    expect(section, where, _TEXT_CONSTANTS)
    _check_rope_type(section, where)
    _check_equal(section, where, "video_gated_attn", "audio_gated_attn")
    _check_equal(section, where, "video_connector_num_learnable_registers", "audio_connector_num_learnable_registers")
    if section.get("video_connector_num_learnable_registers", 128) is None:
        raise ValueError(f"{where}.video_connector_num_learnable_registers is None; connectors need registers")
    config = TextConditionerConfig(
        connector_positional_embedding_max_pos=(section.get("connector_rope_base_seq_len", 4096),),
        context_tokens=_extra(section, "context_tokens", TextConditionerConfig.context_tokens),
        **_to_ours(section, _TEXT_NAMES),
    )
    expect(section, where, {"proj_bias": config.per_modality_projections})
    return config


# ---- video VAE

_KINDS = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
_AXES: dict[str, Any] = {theirs: ours for ours, theirs in _KINDS.items()}


def _video_vae(config: VideoVAEConfig) -> Section:
    """Return the config.json of the video VAE."""
    width, encoder_widths = config.latent_channels, []
    for _, factor in config.downsample:
        width *= factor
        encoder_widths.append(width)
    # Widths before each step of the decoder. diffusers lists the decoder from the pixels' side, except `upsample_type`.
    width, decoder_widths = config.decoder_base_channels * 8, []
    for _, factor in config.upsample:
        decoder_widths.append(width)
        width //= factor
    steps = len(config.upsample)
    return {
        "_class_name": "AutoencoderKLLTX2Video",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "block_out_channels": encoder_widths,
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(encoder_widths),
        "layers_per_block": plain(config.encoder_layers),
        "spatio_temporal_scaling": [True] * len(encoder_widths),
        "downsample_type": [_KINDS[axes] for axes, _ in config.downsample],
        "decoder_block_out_channels": decoder_widths[::-1],
        "decoder_layers_per_block": plain(config.decoder_layers[::-1]),
        "decoder_spatio_temporal_scaling": [True] * steps,
        "decoder_inject_noise": [False] * (steps + 1),
        "upsample_type": [_KINDS[axes] for axes, _ in config.upsample],
        "upsample_residual": [config.upsample_residual and axes == "all" for axes, _ in config.upsample[::-1]],
        "upsample_factor": [factor for _, factor in config.upsample[::-1]],
        "timestep_conditioning": False,
        "patch_size": config.patch_size,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "encoder_causal": True,
        "decoder_causal": False,
        "encoder_spatial_padding_mode": "zeros",
        "decoder_spatial_padding_mode": config.decoder_padding,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def _read_video_vae(section: Section) -> VideoVAEConfig:
    """Convert the config.json of the video VAE to its configuration."""
    where = "vae"
    widths, factors = [section.get("latent_channels", 128), *take(section, where, "block_out_channels")], []
    for before, after in pairwise(widths):
        if after % before:
            raise ValueError(f"{where}.block_out_channels: {after} is not a multiple of {before} before it")
        factors.append(after // before)
    downsample = [_AXES[kind] for kind in take(section, where, "downsample_type")]
    upsample = [_AXES[kind] for kind in take(section, where, "upsample_type")]
    shrink = take(section, where, "upsample_factor")[::-1]
    residual = take(section, where, "upsample_residual")
    residual = [residual] * len(upsample) if isinstance(residual, bool) else residual[::-1]
    all_residual = {flag for flag, axes in zip(residual, upsample, strict=True) if axes == "all"} == {True}
    config = VideoVAEConfig(
        latent_channels=widths[0],
        patch_size=section.get("patch_size", 4),
        encoder_layers=tuple(take(section, where, "layers_per_block")),
        downsample=tuple(zip(downsample, factors, strict=True)),
        decoder_base_channels=take(section, where, "decoder_block_out_channels")[-1] // 8,
        decoder_layers=tuple(take(section, where, "decoder_layers_per_block")[::-1]),
        upsample=tuple(zip(upsample, shrink, strict=True)),
        upsample_residual=all_residual,
        decoder_padding=section.get("decoder_spatial_padding_mode", "reflect"),
    )
    # Entries that were not read must agree with the configuration. A bool there means the same value at every step.
    everywhere = {key: value for key, value in section.items() if isinstance(value, bool)}
    expected = {key: value for key, value in _video_vae(config).items() if key not in everywhere}
    expect(section, where, expected)
    for key, flag in everywhere.items():
        wanted = _video_vae(config).get(key, flag)
        if set(wanted if isinstance(wanted, list) else [wanted]) != {flag}:
            raise ValueError(f"{where}.{key} is {flag!r}; only {wanted!r} is supported")
    return config


# ---- audio VAE

_AUDIO_NAMES = {
    "base_channels": "base_channels",
    "mel_channels": "in_channels",
    "latent_channels": "latent_channels",
    "mel_bins": "mel_bins",
    "res_blocks": "num_res_blocks",
}
_AUDIO_CONSTANTS: Section = {
    "attn_resolutions": None,
    "resolution": 256,
    "norm_type": "pixel",
    "causality_axis": "height",
    "dropout": 0.0,
    "mid_block_add_attention": False,
    "sample_rate": 16_000,
    "mel_hop_length": 160,
    "is_causal": True,
    "double_z": True,
}


def _audio_vae(config: AudioVAEConfig) -> Section:
    """Return the config.json of the audio VAE."""
    check_audio_statistics(config, "diffusers")
    section = _to_theirs(config, _AUDIO_NAMES)
    section |= {"output_channels": config.mel_channels, "ch_mult": plain(config.channel_multipliers)}
    return {"_class_name": "AutoencoderKLLTX2Audio", **_AUDIO_CONSTANTS, **section}


def _read_audio_vae(section: Section) -> AudioVAEConfig:
    """Convert the config.json of the audio VAE to its configuration."""
    expect(section, "audio_vae", _AUDIO_CONSTANTS)
    multipliers = section.get("ch_mult", AudioVAEConfig.channel_multipliers)
    config = AudioVAEConfig(channel_multipliers=multipliers, **_to_ours(section, _AUDIO_NAMES))
    expect(section, "audio_vae", {"output_channels": config.mel_channels})
    return config


# ---- vocoder

_GENERATOR_NAMES = {
    "channels": "hidden_channels",
    "upsample_rates": "upsample_factors",
    "upsample_kernels": "upsample_kernel_sizes",
    "res_kernels": "resnet_kernel_sizes",
    "res_dilations": "resnet_dilations",
    "activation": "act_fn",
    "final_bias": "final_bias",
}
_FINALS = {"tanh": "tanh", "clamp": "clamp", "none": None}


def _generator(config: VocoderConfig, prefix: str) -> Section:
    """Return the entries of one generator; their names start with `prefix`."""
    constants = {
        "in_channels": 2 * config.mel_bins,
        "out_channels": 2,
        "final_act_fn": _FINALS[config.final],
        "antialias": config.activation == "snakebeta",
        "leaky_relu_negative_slope": 0.1,
        "antialias_ratio": 2,
        "antialias_kernel_size": 12,
    }
    return _to_theirs(config, _GENERATOR_NAMES, prefix) | {prefix + key: value for key, value in constants.items()}


def _vocoder(config: VocoderConfig | VocoderWithBWEConfig) -> Section:
    """Return the config.json of the vocoder."""
    if isinstance(config, VocoderConfig):
        return {"_class_name": "LTX2Vocoder", **_generator(config, ""), "output_sampling_rate": config.sample_rate}
    return {
        "_class_name": "LTX2VocoderWithBWE",
        **_generator(config.vocoder, ""),
        **_generator(config.bwe, "bwe_"),
        "filter_length": config.fft_length,
        "window_length": config.fft_length,
        "hop_length": config.hop_length,
        "num_mel_channels": config.bwe.mel_bins,
        "input_sampling_rate": config.vocoder.sample_rate,
        "output_sampling_rate": config.bwe.sample_rate,
    }


def _read_generator(section: Section, prefix: str, sample_rate: int, *, snake: bool) -> VocoderConfig:
    """Convert the entries of one generator, whose names start with `prefix`, to a configuration.

    `snake`: whether it must have SnakeBeta.
    """
    if snake:  # diffusers' defaults differ from those of a plain generator, so every entry must be there
        for theirs in _GENERATOR_NAMES.values():
            take(section, "vocoder", prefix + theirs)
    finals: dict[str | None, Any] = {theirs: ours for ours, theirs in _FINALS.items()}
    config = VocoderConfig(
        mel_bins=section.get(f"{prefix}in_channels", 128) // 2,
        final=finals[section.get(f"{prefix}final_act_fn", None if snake else "tanh")],
        sample_rate=sample_rate,
        **_to_ours(section, _GENERATOR_NAMES, prefix),
    )
    # The entries that were not read say how the activations are filtered; they must be ours.
    expect(section, "vocoder", _generator(config, prefix))
    return config


def _read_vocoder(section: Section) -> VocoderConfig | VocoderWithBWEConfig:
    """Convert the config.json of the vocoder to its configuration."""
    if section["_class_name"] == "LTX2Vocoder":
        return _read_generator(section, "", section.get("output_sampling_rate", 24_000), snake=False)
    rates = [section.get("input_sampling_rate", 16_000), section.get("output_sampling_rate", 48_000)]
    config = VocoderWithBWEConfig(
        vocoder=_read_generator(section, "", rates[0], snake=True),
        bwe=_read_generator(section, "bwe_", rates[1], snake=True),
        fft_length=section.get("filter_length", 512),
        hop_length=section.get("hop_length", 80),
    )
    expect(section, "vocoder", _vocoder(config))
    return config


# ---- upscaler

_UPSCALER_NAMES = {
    "in_channels": "in_channels",
    "mid_channels": "mid_channels",
    "num_blocks_per_stage": "num_blocks_per_stage",
    "spatial_upsample": "spatial_upsample",
    "temporal_upsample": "temporal_upsample",
    "spatial_scale": "rational_spatial_scale",
    "rational_resampler": "use_rational_resampler",
}


def _upscaler(config: UpscalerConfig) -> Section:
    """Return the config.json of the upscaler."""
    return {"_class_name": "LTX2LatentUpsamplerModel", "dims": 3, **_to_theirs(config, _UPSCALER_NAMES)}


def _read_upscaler(section: Section) -> UpscalerConfig:
    """Convert the config.json of the upscaler to its configuration."""
    expect(section, "latent_upsampler", {"dims": 3})
    section = {"use_rational_resampler": True, **section}  # diffusers' default, which differs from ours
    return upscaler(_to_ours(section, _UPSCALER_NAMES))


_WRITERS: dict[str, Any] = {
    "transformer": _transformer,
    "text_conditioner": _text,
    "video_vae": _video_vae,
    "audio_vae": _audio_vae,
    "vocoder": _vocoder,
    "upscaler": _upscaler,
}
_READERS: dict[str, Any] = {
    "transformer": _read_transformer,
    "text_conditioner": _read_text,
    "video_vae": _read_video_vae,
    "audio_vae": _read_audio_vae,
    "vocoder": _read_vocoder,
    "upscaler": _read_upscaler,
}
