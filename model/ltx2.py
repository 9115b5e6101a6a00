"""A complete model: the six components under their names, built from a preset or a configuration."""

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
# The configuration classes of each component, the usual one first.
CONFIG_CLASSES: dict[str, tuple[type, ...]] = {
    "transformer": (TransformerConfig,),
    "text_conditioner": (TextConditionerConfig,),
    "video_vae": (VideoVAEConfig,),
    "audio_vae": (AudioVAEConfig,),
    "vocoder": (VocoderConfig, VocoderWithBWEConfig),
    "upscaler": (UpscalerConfig,),
}


class LTX2(nn.Module):
    """The components of a model by name. A component that was not built or loaded is None.

    Args:
        components: modules by name; each has its configuration as `config`.

    Raises:
        ValueError: a name is unknown, or two components do not fit each other.
    """

    transformer: DualStreamTransformer
    text_conditioner: TextConditioner
    video_vae: VideoVAE
    audio_vae: AudioVAE
    vocoder: Vocoder | VocoderWithBWE
    upscaler: LatentUpscaler

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_components(components)
        check_fit({name: part.config for name, part in components.items()})
        for name in COMPONENTS:
            setattr(self, name, components.get(name))

    @property
    def components(self) -> dict[str, nn.Module]:
        """The components that are not None, by name, in the order of `COMPONENTS`."""
        return {name: part for name in COMPONENTS if (part := getattr(self, name)) is not None}

    @property
    def configs(self) -> dict[str, Any]:
        """The configuration of each of `components`, by name."""
        return {name: part.config for name, part in self.components.items()}


def check_components(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order of `COMPONENTS`; raises ValueError for an unknown one."""
    names = set(names)
    if unknown := sorted(names - set(COMPONENTS)):
        raise ValueError(f"unknown component {unknown[0]!r}; choose among {', '.join(COMPONENTS)}")
    return tuple(name for name in COMPONENTS if name in names)


def component_of(part: nn.Module) -> str:
    """Return the name of a component; raises ValueError for a module of any other class."""
    for name, configs in CONFIG_CLASSES.items():
        if isinstance(part, tuple(_CLASSES[config] for config in configs)):
            return name
    raise ValueError(f"{type(part).__name__} is not a component of LTX-2; components are {', '.join(COMPONENTS)}")


def build_component(config: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build and initialise the component that a configuration describes.

    Args:
        config: configuration of a component.
        device: of the tensors; "meta" allocates no memory for them.
        dtype: of the parameters; see `cast`.
    """
    with torch.device(device):
        part = _CLASSES[type(config)](config)
    return cast(part, dtype)


def cast(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert parameters to `dtype` in place.

    Buffers (latent statistics, filters) and the vocoder with bandwidth extension stay in float32, which they need.
    """
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
    """Build and initialise a model.

    Args:
        preset_or_config: "tiny", "small", "ltx2-19b", "ltx2.3-22b", or a ModelConfig.
        device: of the tensors; "meta" allocates no memory for them, so that any size can be built.
        dtype: of the parameters; see `cast`.
        components: names of the components to build; None for all six.

    Raises:
        ValueError: the preset or a component is unknown.
    """
    config = preset(preset_or_config) if isinstance(preset_or_config, str) else preset_or_config
    names = check_components(COMPONENTS if components is None else components)
    return LTX2({name: build_component(getattr(config, name), device, dtype) for name in names})
