"""Names of each component's tensors in the published layouts.

Our names are those of the published single file ("ltx") without each component's prefix. So the `ltx` layout adds a
prefix, and diffusers' layout renames. This file maps in one direction only, from our names. To read a file, callers
invert the map of all names of a module, so the two directions cannot disagree.
"""

import re
from collections.abc import Iterable

COMPONENTS = ("transformer", "text_conditioner", "video_vae", "audio_vae", "vocoder", "upscaler")

# The folder of each component in a diffusers model.
DIFFUSERS_FOLDERS = {
    "transformer": "transformer",
    "text_conditioner": "connectors",
    "video_vae": "vae",
    "audio_vae": "audio_vae",
    "vocoder": "vocoder",
    "upscaler": "latent_upsampler",
}

_LTX_PREFIXES = {
    "transformer": "model.diffusion_model.",
    "video_vae": "vae.",
    "audio_vae": "audio_vae.",
    "vocoder": "vocoder.",
    "upscaler": "",  # in a separate file
}

# Published statistics that no implementation reads; latents are normalised with the two others.
_LTX_UNUSED = re.compile(
    r"(?:vae|audio_vae)\.per_channel_statistics\.(?:channel|mean-of-stds|mean-of-stds_over_std-of-means)"
)

# Keys that are specific to one release; the latest release first.
_MARKS = {
    "2.5": re.compile(r"keyframes_abs_pos_embedding|^duration_head\."),
    "2.3": re.compile(
        r"to_gate_logits|prompt_adaln|prompt_scale_shift_table|(?:video|audio)_(?:aggregate_embed|text_proj_in)\."
        r"|bwe_generator|mel_stft"
    ),
    "2.0": re.compile(r"caption_projection\.|(?:^|\.)aggregate_embed\.|^text_proj_in\."),
}

_ATTENTION_SEGMENTS = {"q_norm": "norm_q", "k_norm": "norm_k"}
_DIFFUSERS_SEGMENTS = {
    "transformer": {
        **_ATTENTION_SEGMENTS,
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed",
        "prompt_adaln_single": "prompt_adaln",
        "audio_prompt_adaln_single": "audio_prompt_adaln",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
        "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
        "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    },
    "text_conditioner": {
        **_ATTENTION_SEGMENTS,
        "video_embeddings_connector": "video_connector",
        "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
        "text_embedding_projection": "",
        "aggregate_embed": "text_proj_in",
        "video_aggregate_embed": "video_text_proj_in",
        "audio_aggregate_embed": "audio_text_proj_in",
    },
    "video_vae": {
        "res_blocks": "resnets",
        "per_channel_statistics": "",
        "mean-of-means": "latents_mean",
        "std-of-means": "latents_std",
    },
    "audio_vae": {
        "per_channel_statistics": "",
        "mean-of-means": "latents_mean",
        "std-of-means": "latents_std",
    },
    "vocoder": {
        "conv_pre": "conv_in",
        "conv_post": "conv_out",
        "ups": "upsamplers",
        "resblocks": "resnets",
        "act_post": "act_out",
        "lowpass": "",
    },
    "upscaler": {},
}


def ltx_names(component: str, keys: Iterable[str]) -> dict[str, str]:
    """Map a component's keys to their names in the published single file.

    Returns:
        {our key: published name}; for the upscaler, the name in its separate file.
    """
    if component == "text_conditioner":
        # The connectors have the prefix of the transformer, the feature projection has none.
        outside = "text_embedding_projection."
        return {key: key if key.startswith(outside) else f"model.diffusion_model.{key}" for key in keys}
    return {key: _LTX_PREFIXES[component] + key for key in keys}


def ltx_component(key: str) -> str | None:
    """Return the component that a key of the published single file belongs to.

    Returns:
        Its name; None for a tensor that no component uses.

    Raises:
        ValueError: the key belongs to no component of LTX-2; names the release if it is a later one.
    """
    if _LTX_UNUSED.fullmatch(key):
        return None
    if key.startswith(("text_embedding_projection.", "model.diffusion_model.")):
        text = ("text_embedding_projection.", "video_embeddings_connector.", "audio_embeddings_connector.")
        return "text_conditioner" if key.removeprefix("model.diffusion_model.").startswith(text) else "transformer"
    for component in ("video_vae", "audio_vae", "vocoder"):
        if key.startswith(_LTX_PREFIXES[component]):
            return component
    release = release_of([key])
    belongs = f"it belongs to LTX-{release}" if release == "2.5" else "it belongs to no component of LTX-2"
    raise ValueError(f"unknown key {key!r}: {belongs}; 2.0 and 2.3 checkpoints are supported")


def diffusers_names(component: str, keys: Iterable[str]) -> dict[str, str]:
    """Map a component's keys to their names in its diffusers folder.

    Args:
        component: one of `COMPONENTS`.
        keys: all keys of the component, because the nesting of the video VAE depends on their number.

    Returns:
        {our key: diffusers' name}.
    """
    renames = _DIFFUSERS_SEGMENTS[component]
    keys = list(keys)
    steps = {key.split(".")[2] for key in keys if key.startswith("encoder.down_blocks.") and int(key.split(".")[2]) % 2}
    names: dict[str, str] = {}
    for key in keys:
        segments = [renames.get(segment, segment) for segment in key.split(".")]
        if component == "video_vae" and segments[1:2] in (["down_blocks"], ["up_blocks"]):
            segments = _nest_video_vae(segments, encoder_steps=len(steps))
        names[key] = ".".join(filter(None, segments))
    return names


def _nest_video_vae(segments: list[str], *, encoder_steps: int) -> list[str]:
    """Rename a key's segments to the nested blocks of diffusers.

    Our blocks are one list: stages of residual blocks with even numbers, resolution steps with odd numbers.
    Encoder: stage 2i and the step after it are down block i, the last stage is the mid block.
    Decoder: stage 0 is the mid block, step 2i + 1 and the stage after it are up block i.
    """
    side, blocks, number, *rest = segments
    index = int(number)
    if index == (0 if blocks == "up_blocks" else 2 * encoder_steps):
        return [side, "mid_block", *rest]
    if blocks == "up_blocks":
        return [side, blocks, str((index - 1) // 2), *(["upsamplers", "0"] if index % 2 else []), *rest]
    return [side, blocks, str(index // 2), *(["downsamplers", "0"] if index % 2 else []), *rest]


def release_of(keys: Iterable[str]) -> str | None:
    """Return the latest release ("2.5", "2.3" or "2.0") that alone has one of the keys; None where there is none."""
    keys = list(keys)
    for release, mark in _MARKS.items():
        if any(mark.search(key) for key in keys):
            return release
    return None
