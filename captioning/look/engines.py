"""Build the engine that the settings name, and check that it can run."""

import importlib.util

from captioning.look import clip_scores
from captioning.look.endpoint import Endpoint, probe
from captioning.look.transformers_engine import TransformersEngine
from captioning.look.vision_engine import VisionEngine, check_model
from captioning.settings import SeenSettings


def build_engine(settings: SeenSettings) -> VisionEngine:
    """Build the engine that the settings name (transformers or openai), and load its model if it runs here.

    Raises:
        ValueError: Its weights or its endpoint are missing. The message names the setting.
    """
    if settings.engine == "transformers":
        return TransformersEngine(settings)
    assert settings.engine == "openai", "vllm runs in the dataflow"
    return Endpoint(settings)


def check_engine(settings: SeenSettings) -> None:
    """Check that the engine and the open_clip model of the settings can run. Load no weights.

    Raises:
        ValueError: A weight, package, key or endpoint is missing. The message names the setting.
    """
    clip_scores.check_weights(settings)
    if settings.engine == "openai":
        probe(settings)
    elif settings.engine:
        if settings.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "caption.seen.engine: vllm is not installed here; docs/captions.md says how an environment with it is "
                "made, or give transformers or openai"
            )
        check_model(settings.model)
