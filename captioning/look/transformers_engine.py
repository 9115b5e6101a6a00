"""Engine `transformers`: a model in this process that sees (Gemma 3, Qwen VL), or that sees and hears (Qwen Omni).

An omni model has two networks: the thinker reads pictures and sound and writes text, and the talker speaks. Only the
thinker is loaded.
"""

import time
from collections.abc import Sequence
from typing import Any

from captioning.look.frames import from_jpeg
from captioning.look.prompt import Prompt
from captioning.look.vision_engine import NoAnswer, check_model, is_untrained
from captioning.settings import SeenSettings
from data_prep.clip import describe

# Model types that accept sound, and the transformers class of their thinker.
_OMNI = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}


class TransformersEngine:
    """The engine `transformers`. Decoding is greedy, so that the same clip gets the same answer."""

    def __init__(self, settings: SeenSettings) -> None:
        """Load the model.

        Raises:
            ValueError: The model is missing, or does not accept pictures.
        """
        check_model(settings.model)
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(settings.model)
        self.hears = config.model_type in _OMNI
        kind = getattr(transformers, _OMNI.get(config.model_type, "AutoModelForImageTextToText"))
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(settings.model)
            model = kind.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
        except (OSError, ValueError) as error:  # transformers has no such class, or the files do not match it
            raise ValueError(
                f"caption.seen.model {settings.model!r}: a {config.model_type} model that transformers cannot load as "
                f"one that sees ({' '.join(str(error).split())[:160]})"
            ) from error
        self._model = model.to(settings.device).eval()
        self._settings = settings
        self.untrained = is_untrained(settings.model)

    def ask(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        """Ask one prompt after another: one prompt with several pictures fills a device. See `VisionEngine.ask`."""
        return [self._ask_one(prompt) for prompt in prompts]

    def _ask_one(self, prompt: Prompt) -> str | NoAnswer:
        """Return the model's text, or `NoAnswer` if an error occurred or the time limit passed."""
        try:
            return self._generate(prompt)
        except (
            Exception
        ) as error:  # a clip can exceed the model's length or its memory; the other clips keep their answers
            return NoAnswer(describe(error))

    def _generate(self, prompt: Prompt) -> str | NoAnswer:
        """Run the model on a prompt. Return its text, or `NoAnswer` if the time limit passed."""
        import torch

        inputs = self._inputs(prompt).to(self._model.device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self._model.dtype)
        began = time.monotonic()
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self._settings.max_tokens,
                max_time=self._settings.time_limit_s,
            )
        if time.monotonic() - began > self._settings.time_limit_s:
            return NoAnswer(f"no answer within {self._settings.time_limit_s:g} s")
        written = tokens[0, inputs["input_ids"].shape[1] :]
        return self._processor.decode(written, skip_special_tokens=True)

    def _inputs(self, prompt: Prompt) -> Any:
        """Return the processor's output for a prompt: tokens, pictures and, if the model accepts it, sound."""
        sound = prompt.sound if self.hears else None
        content: list[dict[str, Any]] = [{"type": "image"} for _ in prompt.pictures]
        content += [{"type": "audio"}] if sound is not None else []
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}]
        text = self._processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        text = text[0] if isinstance(text, list) else text
        # Leave out missing inputs: several of these processors do not accept None.
        given: dict[str, Any] = {}
        if (bos := self._processor.tokenizer.bos_token) and text.startswith(bos):
            given["add_special_tokens"] = False  # the chat template has already written the BOS token
        if prompt.pictures:
            given["images"] = [from_jpeg(file) for file in prompt.pictures]
        if sound is not None:
            given |= {"audio": [sound], "sampling_rate": 16000}
        return self._processor(text=text, return_tensors="pt", **given)
