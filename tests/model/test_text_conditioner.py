"""Feature extractor and connectors equal those of diffusers; a context does not depend on the other samples."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.key_maps import diffusers_names
from model.presets import preset
from model.text_conditioner import TextConditioner, TextConditionerConfig

V2_0 = TextConditionerConfig(
    hidden_size=32,
    num_states=3,
    connector_num_attention_heads=4,
    connector_attention_head_dim=8,
    audio_connector_num_attention_heads=4,
    audio_connector_attention_head_dim=8,
    connector_num_learnable_registers=8,
    context_tokens=0,
)
V2_3 = replace(
    V2_0, per_modality_projections=True, audio_connector_attention_head_dim=4, connector_apply_gated_attention=True
)
CONFIGS = {"2.0": V2_0, "2.3": V2_3}


def make(config: TextConditionerConfig) -> TextConditioner:
    conditioner = TextConditioner(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in conditioner.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return conditioner


def texts(*valid: int, tokens: int = 16) -> tuple[tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = tuple(torch.randn(len(valid), tokens, 32, generator=generator) * 3 + i for i in range(3))
    return states, torch.stack([torch.arange(tokens) >= tokens - n for n in valid]).long()


@pytest.mark.parametrize("version", CONFIGS)
def test_equals_diffusers(version: str) -> None:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    ours = make(CONFIGS[version])
    newer = version == "2.3"
    theirs = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=4 if newer else 8,
        audio_connector_num_learnable_registers=8,
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=32,
        audio_hidden_dim=16,
        proj_bias=newer,
        video_gated_attn=newer,
        audio_gated_attn=newer,
    )
    names = diffusers_names("text_conditioner", ours.state_dict())
    theirs.load_state_dict({names[key]: value for key, value in ours.state_dict().items()}, strict=True)
    states, mask = texts(5, 12)
    with torch.no_grad():
        video, audio, context_mask = ours(states, mask)
        expected = theirs(torch.stack(states, dim=-1), mask)
    assert context_mask is None
    assert expected[2].all()
    torch.testing.assert_close(video, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(audio, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", CONFIGS)
def test_features_can_be_kept_without_pads(version: str) -> None:
    """Features are stored without pads; connecting them later, alone or with longer ones, gives the same context."""
    ours = make(CONFIGS[version])
    states, mask = texts(5, 12)
    with torch.no_grad():
        together = ours(states, mask)
        video, audio = ours.project(states, mask)
        for index, valid in enumerate((5, 12)):
            alone = [state[index : index + 1, -valid:] for state in states]
            ones = torch.ones(1, valid)
            kept = ours.project(tuple(alone), ones)
            torch.testing.assert_close(kept[0][0], video[index, -valid:], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(kept[1][0], audio[index, -valid:], atol=1e-5, rtol=1e-5)
            longer = TextConditioner(replace(ours.config, context_tokens=16))
            longer.load_state_dict(ours.state_dict())
            context = longer.connect(*kept, ones)
            assert context[0].shape == (1, 16, 32)
            torch.testing.assert_close(context[0][0], together[0][index], atol=1e-5, rtol=1e-5)
    assert (video is audio) == (version == "2.0")


def test_context_is_a_multiple_of_the_registers() -> None:
    ours = make(V2_0)
    for valid, length in ((1, 8), (8, 8), (9, 16)):
        states, mask = texts(valid, tokens=valid)
        assert ours(states, mask)[0].shape == (1, length, 32)
    assert TextConditionerConfig().context_tokens == 1024


def test_thinking_tokens_and_projection_learn() -> None:
    ours = make(V2_3)
    states, mask = texts(5, 12)
    video, audio, _ = ours(states, mask)
    # Contexts are RMS-normed, so the gradient of their sum of squares would be zero.
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    ((video @ direction).square().sum() + (audio @ direction[:16]).square().sum()).backward()
    assert [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_published_sizes() -> None:
    newer = preset("ltx2.3-22b").text_conditioner
    for config, size in ((TextConditionerConfig(), 1_431_475_200), (newer, 3_172_227_584)):
        with torch.device("meta"):
            assert sum(p.numel() for p in TextConditioner(config).parameters()) == size


def test_refuses_what_does_not_fit() -> None:
    ours = make(V2_0)
    states, mask = texts(5, 12)
    with pytest.raises(ValueError, match="2 states of width 32; this model was made for 3"):
        ours(states[:2], mask)
    with pytest.raises(ValueError, match="left-padded"):
        ours(states, mask.flip(1))
    with pytest.raises(ValueError, match=r"expected \(batch, 16\)"):
        ours(states, mask[:, 1:])
    with pytest.raises(ValueError, match="widths must be equal"):
        replace(V2_0, audio_connector_attention_head_dim=4)
