"""A whole model: the six parts under their names, built from a preset or a configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from model.audio_vae import AudioVAE, AudioVAEConfig
from model.key_maps import COMPONENTS
from model.presets import ModelConfig, check_fit, preset
from model.text_conditioner import TextConditioner, TextConditionerConfig
from model.transformer import DualStreamTransformer, TransformerConfig
from model.upscaler import LatentUpscaler, UpscalerConfig
from model.video_vae import VideoVAE, VideoVAEConfig
from model.vocoder import Vocoder, VocoderConfig, VocoderWithBWE, VocoderWithBWEConfig

_CLASSES: dict[type, type[nn.Module]] = {
    TransformerConfig: DualStreamTransformer,
    TextConditionerConfig: TextConditioner,
    VideoVAEConfig: VideoVAE,
    AudioVAEConfig: AudioVAE,
    VocoderConfig: Vocoder,
    VocoderWithBWEConfig: VocoderWithBWE,
    UpscalerConfig: LatentUpscaler,
}
# The configuration classes of each part, the usual one first.
CONFIG_CLASSES: dict[str, tuple[type, ...]] = {
    "transformer": (TransformerConfig,),
    "text_conditioner": (TextConditionerConfig,),
    "video_vae": (VideoVAEConfig,),
    "audio_vae": (AudioVAEConfig,),
    "vocoder": (VocoderConfig, VocoderWithBWEConfig),
    "upscaler": (UpscalerConfig,),
}


class LTX2(nn.Module):
    """The parts of a model by name. A part that was not built or loaded is None.

    Every part has a `config`, its dataclass; `configs` has them all.
    """

    transformer: DualStreamTransformer
    text_conditioner: TextConditioner
    video_vae: VideoVAE
    audio_vae: AudioVAE
    vocoder: Vocoder | VocoderWithBWE
    upscaler: LatentUpscaler

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        """Raises ValueError for an unknown part, and where two parts do not fit each other."""
        super().__init__()
        check_components(components)
        check_fit({name: part.config for name, part in components.items()})
        for name in COMPONENTS:
            setattr(self, name, components.get(name))

    @property
    def components(self) -> dict[str, nn.Module]:
        """The parts at hand by name, in the family's order."""
        return {name: part for name in COMPONENTS if (part := getattr(self, name)) is not None}

    @property
    def configs(self) -> dict[str, Any]:
        return {name: part.config for name, part in self.components.items()}


def check_components(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the family's order; ValueError for one that is no part."""
    names = set(names)
    if unknown := sorted(names - set(COMPONENTS)):
        raise ValueError(f"unknown component {unknown[0]!r}; choose among {', '.join(COMPONENTS)}")
    return tuple(name for name in COMPONENTS if name in names)


def component_of(part: nn.Module) -> str:
    """The name under which a part stands in a model; ValueError for a module that is no part."""
    for name, configs in CONFIG_CLASSES.items():
        if isinstance(part, tuple(_CLASSES[config] for config in configs)):
            return name
    raise ValueError(f"{type(part).__name__} is no part of an LTX-2 model; parts are {', '.join(COMPONENTS)}")


def build_component(config: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The part that a configuration describes, freshly initialised on `device`, its parameters in `dtype`.

    Buffers (latent statistics, filters) and the 48 kHz vocoder stay in float32, which they need.
    """
    with torch.device(device):
        part = _CLASSES[type(config)](config)
    return cast(part, dtype)


def cast(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In place: parameters to `dtype`; buffers, and a vocoder with bandwidth extension, stay in float32."""
    if isinstance(part, VocoderWithBWE):
        dtype = torch.float32
    for parameter in part.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return part


def build(
    preset_or_config: str | ModelConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    components: Iterable[str] | None = None,
) -> LTX2:
    """A freshly initialised model; on device "meta" it takes no memory, whatever its size.

    Args:
        preset_or_config: "tiny", "small", "ltx2-19b", "ltx2.3-22b", or a ModelConfig.
        components: the parts to build (None: all six); the others are None.

    Raises:
        ValueError: unknown preset or component.
    """
    config = preset(preset_or_config) if isinstance(preset_or_config, str) else preset_or_config
    names = check_components(COMPONENTS if components is None else components)
    return LTX2({name: build_component(getattr(config, name), device, dtype) for name in names})
