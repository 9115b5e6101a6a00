"""Presets: the configuration of every component under one name.

`ltx2-19b` and `ltx2.3-22b` are the published models (arXiv 2601.03233). `small` is a 200M transformer over the
published VAEs, vocoder and upscaler, so that it can use their released weights. `tiny` is the 2.0 architecture in every
component, small enough to train on two CPU cores within minutes. It keeps the sizes that the published classes fix, so
that it can be exported to them: 128 registers, an audio VAE as wide as its 128-wide token, connectors as wide as the
text encoder.
"""

from dataclasses import dataclass, field
from typing import Any

from model.audio_vae import AudioVAEConfig
from model.text_conditioner import TextConditionerConfig
from model.transformer import TransformerConfig
from model.upscaler import UpscalerConfig
from model.video_vae import VideoVAEConfig
from model.vocoder import VocoderConfig, VocoderWithBWEConfig


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of all six components. The defaults are LTX-2 19B.

    The text encoder is not a component; `text_conditioner` has the sizes that it must have (`hidden_size`,
    `num_states`).

    Raises:
        ValueError: two components do not fit each other; names both and the values.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    text_conditioner: TextConditionerConfig = field(default_factory=TextConditionerConfig)
    video_vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    audio_vae: AudioVAEConfig = field(default_factory=AudioVAEConfig)
    vocoder: VocoderConfig | VocoderWithBWEConfig = field(default_factory=VocoderConfig)
    upscaler: UpscalerConfig = field(default_factory=UpscalerConfig)

    def __post_init__(self) -> None:
        check_fit({name: getattr(self, name) for name in self.__dataclass_fields__})


def check_fit(configs: dict[str, Any]) -> None:
    """Raise ValueError unless components fit each other.

    Args:
        configs: configurations by component name; those that are missing are not checked.
    """
    transformer, text = configs.get("transformer"), configs.get("text_conditioner")
    video_vae, audio_vae = configs.get("video_vae"), configs.get("audio_vae")
    widths: list[tuple[str, int, str, int]] = []
    if transformer and video_vae:
        channels = video_vae.latent_channels
        widths.append(("transformer.in_channels", transformer.in_channels, "video_vae.latent_channels", channels))
    if transformer and audio_vae:
        width = audio_vae.token_width
        widths.append(("transformer.audio_in_channels", transformer.audio_in_channels, "audio_vae.token_width", width))
    if transformer and text:
        # 2.0 projects captions inside the transformer; 2.3 takes them at the width to which its blocks attend.
        projected = transformer.caption_channels is None
        video = transformer.cross_attention_dim if projected else transformer.caption_channels
        audio = transformer.audio_cross_attention_dim if projected else transformer.caption_channels
        widths.append(("the transformer's text width", video, "text_conditioner.video_width", text.video_width))
        widths.append(("the transformer's audio text width", audio, "text_conditioner.audio_width", text.audio_width))
    if video_vae and (upscaler := configs.get("upscaler")):
        channels = video_vae.latent_channels
        widths.append(("upscaler.in_channels", upscaler.in_channels, "video_vae.latent_channels", channels))
    for name, width, other_name, other in widths:
        if width != other:
            raise ValueError(f"{name} is {width}, {other_name} is {other}: they must be equal")


def _tiny() -> ModelConfig:
    return ModelConfig(
        transformer=TransformerConfig(
            num_layers=4,
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=32,
            out_channels=32,
            cross_attention_dim=192,
            audio_num_attention_heads=6,
            audio_attention_head_dim=16,
            audio_cross_attention_dim=96,
            caption_channels=640,
        ),
        text_conditioner=TextConditionerConfig(  # Gemma 3 270M
            hidden_size=640,
            num_states=19,
            connector_num_attention_heads=10,
            connector_attention_head_dim=64,
            connector_num_layers=1,
            audio_connector_num_attention_heads=10,
            audio_connector_attention_head_dim=64,
            audio_connector_num_layers=1,
            context_tokens=0,
        ),
        video_vae=VideoVAEConfig(
            latent_channels=32,
            encoder_layers=(0, 1, 1, 1, 1),
            downsample=(("space", 2), ("time", 1), ("all", 2), ("all", 1)),
            decoder_base_channels=24,
            decoder_layers=(1, 1, 1, 1),
        ),
        audio_vae=AudioVAEConfig(channel_multipliers=(1, 1, 1), res_blocks=0),
        vocoder=VocoderConfig(channels=128, res_kernels=(3, 7), res_dilations=((1, 3, 5), (1, 3, 5))),
        upscaler=UpscalerConfig(in_channels=32, mid_channels=32, num_blocks_per_stage=1),
    )


def _small() -> ModelConfig:
    return ModelConfig(
        transformer=TransformerConfig(
            num_layers=14,
            num_attention_heads=12,
            attention_head_dim=64,
            cross_attention_dim=768,
            audio_num_attention_heads=12,
            audio_attention_head_dim=32,
            audio_cross_attention_dim=384,
            caption_channels=1152,
        ),
        text_conditioner=TextConditionerConfig(  # Gemma 3 1B
            hidden_size=1152,
            num_states=27,
            connector_num_attention_heads=9,
            connector_attention_head_dim=128,
            audio_connector_num_attention_heads=9,
            audio_connector_attention_head_dim=128,
            context_tokens=256,
        ),
    )


def _ltx2_3_22b() -> ModelConfig:
    return ModelConfig(
        transformer=TransformerConfig(caption_channels=None, apply_gated_attention=True, cross_attention_adaln=True),
        text_conditioner=TextConditionerConfig(
            per_modality_projections=True,
            connector_num_attention_heads=32,
            connector_num_layers=8,
            audio_connector_num_attention_heads=32,
            audio_connector_attention_head_dim=64,
            audio_connector_num_layers=8,
            connector_apply_gated_attention=True,
        ),
        video_vae=VideoVAEConfig.ltx2_3(),
        vocoder=VocoderWithBWEConfig(),
    )


_PRESETS = {"tiny": _tiny, "small": _small, "ltx2-19b": ModelConfig, "ltx2.3-22b": _ltx2_3_22b}
PRESETS = tuple(_PRESETS)


def preset(name: str) -> ModelConfig:
    """Return the configuration of a preset; raises ValueError, with the known names, for an unknown one."""
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose {', '.join(PRESETS)}")
    return _PRESETS[name]()
