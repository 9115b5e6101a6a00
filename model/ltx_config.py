"""Convert configurations to and from the metadata of the published single file ("ltx").

The metadata is one JSON with the sections transformer (with the settings of the connectors), vae, audio_vae, vocoder
and scheduler, as ltx-core's configurators read it. The upscaler has a separate file with a flat JSON. Settings that the
published classes do not have go into a section `kinotone`, which others ignore. Reading and writing raise a ValueError
for a value that the other side cannot build; the message names it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from model.audio_vae import AudioVAEConfig
from model.text_conditioner import TextConditionerConfig
from model.transformer import TransformerConfig
from model.upscaler import UpscalerConfig
from model.video_vae import VideoVAEConfig
from model.vocoder import VocoderConfig, VocoderWithBWEConfig
from model.weight_files import Spec

Section = dict[str, Any]
Specs = Mapping[str, Spec]

REGISTERS = 128  # ltx-core's connectors take no other number

_TRANSFORMER_NAMES = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "audio_num_attention_heads",
    "audio_attention_head_dim",
    "audio_in_channels",
    "audio_out_channels",
    "audio_cross_attention_dim",
    "norm_eps",
    "positional_embedding_theta",
    "positional_embedding_max_pos",
    "audio_positional_embedding_max_pos",
    "timestep_scale_multiplier",
    "av_ca_timestep_scale_multiplier",
    "apply_gated_attention",
    "cross_attention_adaln",
)
_CONNECTOR_NAMES = (
    "connector_num_attention_heads",
    "connector_attention_head_dim",
    "connector_num_layers",
    "audio_connector_num_attention_heads",
    "audio_connector_attention_head_dim",
    "audio_connector_num_layers",
    "connector_apply_gated_attention",
    "connector_num_learnable_registers",
    "connector_positional_embedding_max_pos",
)
_TRANSFORMER_CONSTANTS: Section = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "upcast_attention": False,
    "use_linear_projection": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
}
# Always written, because ltx-core's defaults are the opposite.
_ROPE: Section = {"rope_type": "split", "frequencies_precision": "float64"}
# The entries that distinguish the text path of 2.3 from that of 2.0; ltx-core takes all four or none.
_TEXT_2_3: Section = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}
_SCHEDULER: Section = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000}


def expect(section: Mapping[str, Any], where: str, expected: Mapping[str, Any]) -> None:
    """Raise ValueError where an entry of a section differs from the expected value; a missing entry is accepted.

    Args:
        section: to check.
        where: name of the section, for the message.
        expected: expected value of each entry.
    """
    for key, value in expected.items():
        found = section.get(key, value)
        if plain(found) != plain(value):
            raise ValueError(f"{where}.{key} is {found!r}; only {value!r} is supported")


def take(section: Mapping[str, Any], where: str, key: str) -> Any:
    """Return the entry `key` of a section; raises ValueError where it is missing. `where` is for the message."""
    if key not in section:
        raise ValueError(f"{where}.{key} is missing from the configuration")
    return section[key]


def plain(value: Any) -> Any:
    """Convert tuples to lists at every depth, as JSON does; return any other value unchanged."""
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _named(config: Any, names: Iterable[str]) -> Section:
    """Return the fields `names` of a configuration by name, as JSON values."""
    return {name: plain(getattr(config, name)) for name in names}


# ---- all components


def to_ltx(configs: Mapping[str, Any]) -> Section:
    """Convert configurations by name (without the upscaler's) to sections.

    Raises:
        ValueError: the published classes cannot build a network of these sizes.
    """
    sections: Section = {}
    extra: Section = {}
    transformer, text = configs.get("transformer"), configs.get("text_conditioner")
    if transformer or text:
        sections["transformer"] = _transformer_section(transformer, text)
        if transformer and transformer.av_timestep != TransformerConfig.av_timestep:
            extra["av_timestep"] = transformer.av_timestep
        if text and text.context_tokens != TextConditionerConfig.context_tokens:
            extra["context_tokens"] = text.context_tokens
    writers = {"video_vae": ("vae", _vae), "audio_vae": ("audio_vae", _audio_vae), "vocoder": ("vocoder", _vocoder)}
    for name, (section, write) in writers.items():
        if name in configs:
            sections[section] = write(configs[name])
    sections["scheduler"] = _SCHEDULER
    return sections | ({"kinotone": extra} if extra else {})


def from_ltx(sections: Mapping[str, Any], specs: Specs, components: Iterable[str]) -> dict[str, Any]:
    """Convert sections to the configurations of `components` (without the upscaler's).

    Args:
        sections: the `config` of the metadata.
        specs: shapes of the tensors by published key, from which follow sizes that no section has.
        components: names of the components.

    Returns:
        Configurations by name.

    Raises:
        ValueError: a section is missing, or a value describes a network that this package cannot build.
    """
    extra = sections.get("kinotone", {})
    configs: dict[str, Any] = {}
    for name in components:
        section = "transformer" if name == "text_conditioner" else {"video_vae": "vae"}.get(name, name)
        found = take(sections, "metadata", section)
        if name == "transformer":
            configs[name] = _read_transformer(found, extra)
        elif name == "text_conditioner":
            configs[name] = _read_text(found, specs, extra)
        else:
            configs[name] = {"video_vae": _read_vae, "audio_vae": _read_audio_vae, "vocoder": _read_vocoder}[name](
                found
            )
    return configs


def version(configs: Mapping[str, Any]) -> str:
    """Return the release whose architecture the components have: "2.3" or "2.0"."""
    transformer, text, vocoder = (configs.get(name) for name in ("transformer", "text_conditioner", "vocoder"))
    later = (transformer is not None and transformer.caption_channels is None) or (
        text is not None and text.per_modality_projections
    )
    return "2.3" if later or isinstance(vocoder, VocoderWithBWEConfig) else "2.0"


# ---- upscaler: a flat configuration, in a separate file


_UPSCALER_NAMES = (
    "in_channels",
    "mid_channels",
    "num_blocks_per_stage",
    "spatial_upsample",
    "temporal_upsample",
    "spatial_scale",
    "rational_resampler",
)


def upscaler_to_ltx(config: UpscalerConfig) -> Section:
    """Convert the upscaler's configuration to its flat section."""
    return {"_class_name": "LatentUpsampler", "dims": 3, **_named(config, _UPSCALER_NAMES)}


def upscaler_from_ltx(section: Mapping[str, Any]) -> UpscalerConfig:
    """Convert a flat section to the upscaler's configuration; raises ValueError for a network that is not 3-D."""
    expect(section, "upscaler", {"dims": 3})
    defaults: Section = {"mid_channels": 512}  # ltx-core's default, which differs from ours
    return upscaler(defaults | {name: section[name] for name in _UPSCALER_NAMES if name in section})


def upscaler(arguments: Section) -> UpscalerConfig:
    """Build the upscaler's configuration as the published classes would read it.

    They use `rational_resampler` only where space alone is scaled, and `spatial_scale` only with it.

    Args:
        arguments: fields of the configuration; may be incomplete.
    """
    space_alone = arguments.get("spatial_upsample", True) and not arguments.get("temporal_upsample", False)
    if not (space_alone and arguments.get("rational_resampler", False)):
        arguments = arguments | {"rational_resampler": False, "spatial_scale": 2.0}
    return UpscalerConfig(**arguments)


# ---- transformer and text conditioner


def _transformer_section(transformer: TransformerConfig | None, text: TextConditionerConfig | None) -> Section:
    """Return the section `transformer`, which has the settings of the transformer and those of the text conditioner.

    Either may be None. Raises ValueError where a size does not fit ltx-core's classes.
    """
    section: Section = {"_class_name": "AVTransformer3DModel", **_TRANSFORMER_CONSTANTS, **_ROPE}
    if transformer:
        section |= _named(transformer, _TRANSFORMER_NAMES)
        if transformer.caption_channels is None:
            section |= _TEXT_2_3
        else:
            section["caption_channels"] = transformer.caption_channels
    if text:
        if text.connector_num_learnable_registers != REGISTERS:
            raise ValueError(
                f"text_conditioner.connector_num_learnable_registers is {text.connector_num_learnable_registers}; "
                f"the ltx layout has room for {REGISTERS} only"
            )
        widths = {"text_conditioner.video_width": text.video_width, "text_conditioner.audio_width": text.audio_width}
        if text.per_modality_projections:
            section |= _TEXT_2_3
            # ltx-core projects text to the widths of the streams; without a transformer, those are the connectors'.
            if not transformer:
                section |= {
                    "num_attention_heads": text.connector_num_attention_heads,
                    "attention_head_dim": text.connector_attention_head_dim,
                    "audio_num_attention_heads": text.audio_connector_num_attention_heads,
                    "audio_attention_head_dim": text.audio_connector_attention_head_dim,
                }
            wanted = (transformer.width, transformer.audio_width) if transformer else tuple(widths.values())
        else:
            wanted = (text.hidden_size, text.hidden_size)
        for (name, width), other in zip(widths.items(), wanted, strict=True):
            if width != other:
                raise ValueError(f"{name} is {width}; the ltx layout has room for {other} only")
        section |= {
            "caption_channels": text.hidden_size,
            "use_embeddings_connector": True,
            "connector_norm_output": True,
        }
        section |= _named(text, _CONNECTOR_NAMES)
    return section


def _check_transformer_section(section: Section) -> None:
    """Raise ValueError where a fixed setting of the section `transformer` is not that of 2.0 or 2.3."""
    expect(section, "transformer", _TRANSFORMER_CONSTANTS)
    for name, value in _ROPE.items():
        if section.get(name) != value:
            raise ValueError(f"transformer.{name} is {section.get(name)!r}; only {value!r} is supported")
    if section.get("ff_bias", True) is not True or section.get("use_keyframes_abs_pos_embedding"):
        raise ValueError("transformer.ff_bias is False: this is an LTX-2.5 checkpoint; 2.0 and 2.3 are supported")
    if section.get("caption_proj_before_connector"):
        expect(section, "transformer", _TEXT_2_3)


def _read_transformer(section: Section, extra: Section) -> TransformerConfig:
    """Convert the section `transformer` to a configuration; `extra` is the section `kinotone`."""
    _check_transformer_section(section)
    arguments = {name: section[name] for name in _TRANSFORMER_NAMES if name in section}
    take(section, "transformer", "av_ca_timestep_scale_multiplier")  # no release uses ltx-core's default, 1
    for name in ("timestep_scale_multiplier", "av_ca_timestep_scale_multiplier"):
        if name in arguments:
            arguments[name] = int(arguments[name])
    projected = section.get("caption_proj_before_connector", False)
    return TransformerConfig(
        caption_channels=None if projected else take(section, "transformer", "caption_channels"),
        av_timestep=extra.get("av_timestep", TransformerConfig.av_timestep),
        **arguments,
    )


def _read_text(section: Section, specs: Specs, extra: Section) -> TextConditionerConfig:
    """Convert the section `transformer` to that of the text conditioner; see `from_ltx` for `specs`."""
    _check_transformer_section(section)
    take(section, "transformer", "connector_positional_embedding_max_pos")  # no release uses ltx-core's default, 1
    arguments = {name: section[name] for name in _CONNECTOR_NAMES if name in section}
    for name in ("num_attention_heads", "attention_head_dim", "num_layers"):
        if f"connector_{name}" in section:
            arguments.setdefault(f"audio_connector_{name}", section[f"connector_{name}"])
    per_modality = bool(section.get("caption_proj_before_connector", False))
    hidden = take(section, "transformer", "caption_channels")
    key = f"text_embedding_projection.{'video_' if per_modality else ''}aggregate_embed.weight"
    if key not in specs:
        raise ValueError(f"missing key {key!r}, which an LTX-{'2.3' if per_modality else '2.0'} checkpoint has")
    return TextConditionerConfig(
        hidden_size=hidden,
        num_states=specs[key].shape[1] // hidden,
        per_modality_projections=per_modality,
        context_tokens=extra.get("context_tokens", TextConditionerConfig.context_tokens),
        **arguments,
    )


# ---- video VAE


_VAE_CONSTANTS: Section = {
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "timestep_conditioning": False,
}


def _vae(config: VideoVAEConfig) -> Section:
    """Return the section `vae`."""
    encoder: list[list[Any]] = [["res_x", {"num_layers": config.encoder_layers[0]}]]
    for (axes, factor), layers in zip(config.downsample, config.encoder_layers[1:], strict=True):
        encoder += [[f"compress_{axes}_res", {"multiplier": factor}], ["res_x", {"num_layers": layers}]]
    decoder: list[list[Any]] = [["res_x", {"num_layers": config.decoder_layers[0]}]]
    for (axes, factor), layers in zip(config.upsample, config.decoder_layers[1:], strict=True):
        residual = {"residual": True} if config.upsample_residual and axes == "all" else {}
        decoder += [[f"compress_{axes}", {**residual, "multiplier": factor}], ["res_x", {"num_layers": layers}]]
    section: Section = {
        "_class_name": "CausalVideoAutoencoder",
        **_VAE_CONSTANTS,
        "latent_channels": config.latent_channels,
        "encoder_blocks": encoder,
        "decoder_blocks": decoder[::-1],  # the published order starts at the pixels
        "patch_size": config.patch_size,
        "encoder_base_channels": config.latent_channels,
        "decoder_base_channels": config.decoder_base_channels,
    }
    # The published entry applies to encoder and decoder; without it, the encoder pads zeros and the decoder reflects.
    return section | ({"spatial_padding_mode": "zeros"} if config.decoder_padding == "zeros" else {})


def _read_vae(section: Section) -> VideoVAEConfig:
    """Convert the section `vae` to a configuration."""
    expect(section, "vae", _VAE_CONSTANTS)
    encoder_layers, downsample, _ = _read_blocks(section, "encoder_blocks", suffix="_res", default_multiplier=2)
    decoder_layers, upsample, residual = _read_blocks(section, "decoder_blocks", suffix="", default_multiplier=1)
    expect(section, "vae", {"spatial_padding_mode": "zeros"})
    return VideoVAEConfig(
        latent_channels=section.get("latent_channels", 128),
        patch_size=section.get("patch_size", 4),
        encoder_layers=encoder_layers,
        downsample=downsample,
        decoder_base_channels=section.get("decoder_base_channels", 128),
        decoder_layers=decoder_layers,
        upsample=upsample,
        upsample_residual=residual,
        decoder_padding=section.get("spatial_padding_mode", "reflect"),
    )


def _read_blocks(
    section: Section, name: str, *, suffix: str, default_multiplier: int
) -> tuple[tuple[int, ...], tuple[Any, ...], bool]:
    """Read a list of blocks of the section `vae`, "res_x" and "compress_…" in turns.

    Args:
        section: `vae`.
        name: "encoder_blocks" or "decoder_blocks".
        suffix: at the end of the names of resolution steps.
        default_multiplier: of a step that has none.

    Returns:
        In order of execution, the residual blocks of each stage, and (axes, multiplier) of each step; then whether the
        steps that change all axes have a skip.
    """
    blocks = take(section, "vae", name)
    if name == "decoder_blocks":
        blocks = blocks[::-1]
    layers: list[int] = []
    steps: list[tuple[str, int]] = []
    residual: set[bool] = set()
    for index, (block, given) in enumerate(blocks):
        parameters: Section = {"num_layers": given} if isinstance(given, int) else given
        expect(parameters, f"vae.{name}.{block}", {"inject_noise": False})
        axes = block.removeprefix("compress_").removesuffix(suffix)
        if index % 2 == 0 and block == "res_x":
            layers.append(parameters["num_layers"])
        elif index % 2 == 1 and block == f"compress_{axes}{suffix}" and axes in ("space", "time", "all"):
            steps.append((axes, parameters.get("multiplier", default_multiplier)))
            if axes == "all":
                residual.add(bool(parameters.get("residual", False)))
        else:
            raise ValueError(f"vae.{name}[{index}] is {block!r}; supported is res_x and compress_*{suffix} in turns")
    if len(residual) > 1:
        raise ValueError(f"vae.{name}: some compress_all are residual and some not; supported is all or none")
    return tuple(layers), tuple(steps), residual == {True}


# ---- audio VAE


_DDCONFIG_CONSTANTS: Section = {
    "double_z": True,
    "attn_resolutions": [],
    "dropout": 0.0,
    "mid_block_add_attention": False,
    "norm_type": "pixel",
    "causality_axis": "height",
}
_AUDIO_PREPROCESSING: Section = {
    "audio": {"sampling_rate": 16_000, "stereo": True},
    "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
    "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
}


def check_audio_statistics(config: AudioVAEConfig, layout: str) -> None:
    """Raise ValueError unless `base_channels` equals `token_width`.

    The published classes give the latent statistics `base_channels` entries; ours have `token_width`. `layout` is for
    the message.
    """
    if config.base_channels != config.token_width:
        raise ValueError(
            f"audio_vae.base_channels is {config.base_channels} and its token is {config.token_width} wide; "
            f"the {layout} layout has room for models where both are equal"
        )


def _audio_vae(config: AudioVAEConfig) -> Section:
    """Return the section `audio_vae`."""
    check_audio_statistics(config, "ltx")
    ddconfig = {
        **_DDCONFIG_CONSTANTS,
        "mel_bins": config.mel_bins,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": config.mel_channels,
        "out_ch": config.mel_channels,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.res_blocks,
    }
    mel = _AUDIO_PREPROCESSING["mel"] | {"n_mel_channels": config.mel_bins}
    return {
        "model": {"params": {"ddconfig": ddconfig, "sampling_rate": 16_000}},
        "preprocessing": _AUDIO_PREPROCESSING | {"mel": mel},
    }


def _read_audio_vae(section: Section) -> AudioVAEConfig:
    """Convert the section `audio_vae` to a configuration."""
    parameters = take(take(section, "audio_vae", "model"), "audio_vae.model", "params")
    ddconfig: Section = take(parameters, "audio_vae.model.params", "ddconfig")
    for key in ("attn_resolutions", "mid_block_add_attention"):  # ltx-core's defaults have attention
        take(ddconfig, "audio_vae ddconfig", key)
    expect(ddconfig, "audio_vae ddconfig", _DDCONFIG_CONSTANTS)
    expect(section.get("preprocessing", {}).get("stft", {}), "audio_vae stft", _AUDIO_PREPROCESSING["stft"])
    return AudioVAEConfig(
        mel_channels=ddconfig.get("in_channels", 2),
        mel_bins=ddconfig.get("mel_bins") or section["preprocessing"]["mel"]["n_mel_channels"],
        latent_channels=ddconfig.get("z_channels", 8),
        base_channels=ddconfig.get("ch", 128),
        channel_multipliers=ddconfig.get("ch_mult", (1, 2, 4)),
        res_blocks=ddconfig.get("num_res_blocks", 2),
    )


# ---- vocoder


def _generator(config: VocoderConfig, *, snake: bool, finals: tuple[str, ...]) -> Section:
    """Return the section of one generator; raises ValueError where it does not fit ltx-core's class.

    `snake`: whether the layout needs SnakeBeta. `finals`: supported values of `final`.
    """
    for name, found, supported in (
        ("mel_bins", config.mel_bins, (64,)),
        ("activation", config.activation, ("snakebeta" if snake else "leaky_relu",)),
        ("final", config.final, finals),
    ):
        if found not in supported:
            raise ValueError(f"vocoder.{name} is {found!r}; the ltx layout has room for {supported[0]!r} only")
    for dilations in config.res_dilations:
        if len(dilations) != 3:
            raise ValueError(
                f"vocoder.res_dilations has {dilations}; the ltx layout has room for three in a block only"
            )
    return {
        "upsample_initial_channel": config.channels,
        "resblock": "AMP1" if snake else "1",
        "upsample_rates": plain(config.upsample_rates),
        "resblock_kernel_sizes": plain(config.res_kernels),
        "upsample_kernel_sizes": plain(config.upsample_kernels),
        "resblock_dilation_sizes": plain(config.res_dilations),
        "stereo": True,
        "use_tanh_at_final": config.final == "tanh",
        "use_bias_at_final": config.final_bias,
        **({"activation": "snakebeta"} if snake else {}),
    }


def _vocoder(config: VocoderConfig | VocoderWithBWEConfig) -> Section:
    """Return the section `vocoder`."""
    if isinstance(config, VocoderConfig):
        section = _generator(config, snake=False, finals=("tanh", "clamp"))
        return section | {"output_sampling_rate": config.sample_rate}
    bwe = {
        **_generator(config.bwe, snake=True, finals=("none",)),
        "apply_final_activation": False,
        "input_sampling_rate": config.vocoder.sample_rate,
        "output_sampling_rate": config.bwe.sample_rate,
        "hop_length": config.hop_length,
        "n_fft": config.fft_length,
        "win_size": config.fft_length,
        "num_mels": config.bwe.mel_bins,
    }
    return {"vocoder": _generator(config.vocoder, snake=True, finals=("clamp", "tanh")), "bwe": bwe}


def _read_generator(section: Section, *, snake: bool, sample_rate: int, bandwidth: bool = False) -> VocoderConfig:
    """Convert the section of one generator to a configuration.

    `snake`: whether it must have SnakeBeta. `bandwidth`: whether it is the second generator, without a final function.
    """
    expect(section, "vocoder", {"stereo": True, "resblock": "AMP1" if snake else "1"})
    if snake:
        expect(section, "vocoder", {"activation": "snakebeta"})
    defaults = VocoderConfig()
    final = "tanh" if section.get("use_tanh_at_final", True) else "clamp"
    return VocoderConfig(
        channels=section.get("upsample_initial_channel", defaults.channels),
        upsample_rates=section.get("upsample_rates", defaults.upsample_rates),
        upsample_kernels=section.get("upsample_kernel_sizes", defaults.upsample_kernels),
        res_kernels=section.get("resblock_kernel_sizes", defaults.res_kernels),
        res_dilations=section.get("resblock_dilation_sizes", defaults.res_dilations),
        activation="snakebeta" if snake else "leaky_relu",
        final="none" if bandwidth else final,
        final_bias=section.get("use_bias_at_final", True),
        sample_rate=sample_rate,
    )


def _read_vocoder(section: Section) -> VocoderConfig | VocoderWithBWEConfig:
    """Convert the section `vocoder` to a configuration, with bandwidth extension where it has a section `bwe`."""
    if "bwe" not in section:
        return _read_generator(section, snake=False, sample_rate=section.get("output_sampling_rate", 24_000))
    bwe: Section = section["bwe"]
    rates = [take(bwe, "vocoder.bwe", f"{side}_sampling_rate") for side in ("input", "output")]
    return VocoderWithBWEConfig(
        vocoder=_read_generator(take(section, "vocoder", "vocoder"), snake=True, sample_rate=rates[0]),
        bwe=_read_generator(bwe, snake=True, sample_rate=rates[1], bandwidth=True),
        fft_length=take(bwe, "vocoder.bwe", "n_fft"),
        hop_length=take(bwe, "vocoder.bwe", "hop_length"),
    )
