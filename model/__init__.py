"""The LTX-2 model family in pure PyTorch: `model.build("tiny")`, `model.weights.load(path)`.

Components: `transformer` (the dual-stream denoiser), `text_conditioner` (feature extractor and connectors),
`video_vae`, `audio_vae`, `vocoder`, `upscaler`. The text encoder (Gemma 3) is not a component: see
`model.text_encoder`.
"""

from model import weights
from model.key_maps import COMPONENTS
from model.ltx2 import LTX2, build, build_component
from model.presets import PRESETS, ModelConfig, preset

__all__ = ["COMPONENTS", "LTX2", "PRESETS", "ModelConfig", "build", "build_component", "preset", "weights"]
