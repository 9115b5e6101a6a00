"""Tokens, positions, and the inputs that a modality refuses."""

import pytest
import torch

from model.modality import (
    audio_positions,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
    video_positions,
)


def test_golden_bounds() -> None:
    video = video_positions(3, 2, 2, 25.0)
    assert video.shape == (1, 3, 12, 2)
    torch.testing.assert_close(video[0, 0, ::4], torch.tensor([[0, 0.04], [0.04, 0.36], [0.36, 0.68]]))
    assert video[0, 1:, 3].tolist() == [[32, 64], [32, 64]]
    audio = audio_positions(4)
    expected = torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.09], [0.09, 0.13]])
    torch.testing.assert_close(audio[0, 0], expected)


@pytest.mark.parametrize("fps", [23.976, 24.0, 25.0, 30.0])
def test_positions_equal_diffusers(fps: float) -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

    video = LTX2AudioVideoRotaryPosEmbed(dim=64, rope_type="split", num_attention_heads=2)
    audio = LTX2AudioVideoRotaryPosEmbed(dim=64, scale_factors=(4,), modality="audio", rope_type="split")
    device = torch.device("cpu")
    expected = video.prepare_video_coords(2, 5, 3, 4, device, fps=fps)
    assert torch.equal(video_positions(5, 3, 4, fps, batch=2), expected)
    assert torch.equal(audio_positions(11, batch=2), audio.prepare_audio_coords(2, 11, device))


def test_positions_equal_ltx_core() -> None:
    patchifiers = pytest.importorskip("ltx_core.components.patchifiers")
    from ltx_core.types import AudioLatentShape

    shape = AudioLatentShape(batch=2, channels=8, frames=7, mel_bins=16)
    expected = patchifiers.AudioPatchifier(1).get_patch_grid_bounds(shape, device=torch.device("cpu"))
    torch.testing.assert_close(audio_positions(7, batch=2), expected.float())


def test_tokens_there_and_back() -> None:
    video, audio = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 8, 6, 16)
    tokens = patchify_video(video)
    assert torch.equal(tokens[:, 1 * 20 + 2 * 5 + 3], video[:, :, 1, 2, 3])
    assert torch.equal(unpatchify_video(tokens, 3, 4, 5), video)
    tokens = patchify_audio(audio)
    assert torch.equal(tokens[:, 4, 3 * 16 : 4 * 16], audio[:, 3, 4])
    assert torch.equal(unpatchify_audio(tokens, 8, 16), audio)
    with pytest.raises(ValueError, match="60 video tokens do not fill 3×4×4 = 48"):
        unpatchify_video(patchify_video(video), 3, 4, 4)
    with pytest.raises(ValueError, match="audio token width 128 is not 8 channels × 8"):
        unpatchify_audio(tokens, 8, 8)
    for call in (
        lambda: video_positions(0, 1, 1, 24.0),
        lambda: video_positions(1, 1, 1, 0),
        lambda: audio_positions(0),
    ):
        with pytest.raises(ValueError, match="positions need"):
            call()
