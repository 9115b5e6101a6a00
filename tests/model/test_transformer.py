"""The transformer equals the published classes, runs one stream alone, and refuses what does not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.train_step import diffusers_twin
from model import layers
from model.key_maps import diffusers_names
from model.modality import Modality, audio_positions, video_positions
from model.transformer import DualStreamTransformer, TransformerConfig

F, H, W, T_AUDIO, T_TEXT, BATCH = 3, 2, 3, 5, 7, 2
T_VIDEO = F * H * W

TINY_2_0 = TransformerConfig(
    num_layers=2,
    num_attention_heads=4,
    attention_head_dim=32,
    in_channels=8,
    out_channels=8,
    cross_attention_dim=128,
    audio_num_attention_heads=4,
    audio_attention_head_dim=16,
    audio_in_channels=8,
    audio_out_channels=8,
    audio_cross_attention_dim=64,
    caption_channels=24,
)
TINY_2_3 = replace(TINY_2_0, caption_channels=None, apply_gated_attention=True, cross_attention_adaln=True)
TINY = {"2.0": TINY_2_0, "2.3": TINY_2_3}


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08, generator=generator)
    return model


def make(config: TransformerConfig) -> DualStreamTransformer:
    model = DualStreamTransformer(config)
    randomised(model)
    return model


def streams(config: TransformerConfig, *, equal_sigma: bool = False, per_token: bool = False, batch: int = BATCH):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sigma_video = torch.rand(batch, generator=generator)
    sigma_audio = sigma_video if equal_sigma else torch.rand(batch, generator=generator)
    clean = torch.ones(T_VIDEO)
    if per_token:
        clean[: H * W] = 0
    video = Modality(
        latent=normal(batch, T_VIDEO, config.in_channels),
        timesteps=sigma_video[:, None] * clean,
        sigma=sigma_video,
        positions=video_positions(F, H, W, 24.0, batch=batch),
        context=normal(batch, T_TEXT, config.caption_channels or config.cross_attention_dim),
    )
    audio = Modality(
        latent=normal(batch, T_AUDIO, config.audio_in_channels),
        timesteps=sigma_audio[:, None].expand(batch, T_AUDIO),
        sigma=sigma_audio,
        positions=audio_positions(T_AUDIO, batch=batch),
        context=normal(batch, T_TEXT, config.caption_channels or config.audio_cross_attention_dim),
    )
    return video, audio


def run_diffusers(twin: nn.Module, video: Modality, audio: Modality, *, cross: bool, **extra: Any):
    return twin(
        hidden_states=video.latent,
        audio_hidden_states=audio.latent,
        encoder_hidden_states=video.context,
        audio_encoder_hidden_states=audio.context,
        timestep=video.timesteps.contiguous() * 1000,
        audio_timestep=audio.timesteps.contiguous() * 1000,
        sigma=video.sigma * 1000,
        audio_sigma=audio.sigma * 1000,
        num_frames=F,
        height=H,
        width=W,
        fps=24.0,
        audio_num_frames=T_AUDIO,
        use_cross_timestep=cross,
        return_dict=False,
        **extra,
    )


def assert_equal(ours: tuple, theirs: tuple, atol: float = 1e-5) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.abs().mean() > 1e-2
        torch.testing.assert_close(our, their, atol=atol, rtol=0)


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("av_timestep", ["own", "other"])
@pytest.mark.parametrize("equal_sigma", [True, False])
@pytest.mark.parametrize("per_token", [False, True])
def test_equals_diffusers(version: str, av_timestep: Any, equal_sigma: bool, per_token: bool) -> None:
    ours = make(replace(TINY[version], av_timestep=av_timestep))
    video, audio = streams(ours.config, equal_sigma=equal_sigma, per_token=per_token)
    with torch.no_grad():
        theirs = run_diffusers(diffusers_twin(ours), video, audio, cross=av_timestep == "other")
        assert_equal(ours(video, audio), theirs)


@pytest.mark.parametrize("version", TINY)
def test_gate_other_equals_both_at_equal_sigma(version: str) -> None:
    ours = make(replace(TINY[version], av_timestep="gate_other"))
    video, audio = streams(ours.config, equal_sigma=True)
    with torch.no_grad():
        out = ours(video, audio)
        twin = diffusers_twin(ours)
        for cross in (False, True):
            assert_equal(out, run_diffusers(twin, video, audio, cross=cross))


def test_gate_other_takes_the_gate_alone_from_the_other_stream() -> None:
    """At unequal σ "gate_other" differs from both; its gate equals that of "other", scale and shift those of "own"."""
    base = make(replace(TINY_2_0, av_timestep="gate_other"))
    video, audio = streams(base.config)

    def out(kind: Any, silence: str) -> Tensor:
        model = DualStreamTransformer(replace(TINY_2_0, av_timestep=kind))
        state = base.state_dict()
        for key in state:  # modules whose rows no longer depend on σ
            if silence and silence in key and key.endswith("linear.weight"):
                state[key] = torch.zeros_like(state[key])
        model.load_state_dict(state)
        with torch.no_grad():
            return model(video, audio)[0]

    scale_shift, gate = "scale_shift_adaln_single", "gate_adaln_single"
    for other in ("own", "other"):
        assert (out("gate_other", "") - out(other, "")).abs().max() > 1e-4
    torch.testing.assert_close(out("gate_other", scale_shift), out("other", scale_shift))
    assert (out("gate_other", scale_shift) - out("own", scale_shift)).abs().max() > 1e-5
    torch.testing.assert_close(out("gate_other", gate), out("own", gate))
    assert (out("gate_other", gate) - out("other", gate)).abs().max() > 1e-5


@pytest.mark.parametrize("version", TINY)
def test_equals_ltx_core_both_ways(version: str) -> None:
    """Keys are the published ones: weights load strictly in both directions."""
    ltx = pytest.importorskip("ltx_core.model.transformer.model")
    from ltx_core.guidance.perturbations import BatchedPerturbationConfig
    from ltx_core.model.transformer.modality import Modality as LTXModality
    from ltx_core.model.transformer.rope import LTXRopeType
    from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection

    c = replace(TINY[version], av_timestep="other")
    extra: dict[str, Any] = {"apply_gated_attention": True, "cross_attention_adaln": True}
    if version == "2.0":
        extra = {
            "caption_projection": PixArtAlphaTextProjection(24, 128),
            "audio_caption_projection": PixArtAlphaTextProjection(24, 64),
        }
    theirs = ltx.LTXModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=8, out_channels=8, num_layers=2,
        cross_attention_dim=128, audio_num_attention_heads=4, audio_attention_head_dim=16, audio_in_channels=8,
        audio_out_channels=8, audio_cross_attention_dim=64, rope_type=LTXRopeType.SPLIT, double_precision_rope=True,
        av_ca_timestep_scale_multiplier=1000, **extra,
    )  # fmt: skip
    ours = make(c)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    DualStreamTransformer(c).load_state_dict(theirs.state_dict(), strict=True)
    video, audio = streams(c, per_token=True)

    def to_ltx(m: Modality) -> Any:
        return LTXModality(
            latent=m.latent, sigma=m.sigma, timesteps=m.timesteps.contiguous(), positions=m.positions, context=m.context
        )

    with torch.no_grad():
        out = theirs(to_ltx(video), to_ltx(audio), BatchedPerturbationConfig.empty(BATCH))
        assert_equal(ours(video, audio), out)
        alone, _ = theirs(to_ltx(video), None, BatchedPerturbationConfig.empty(BATCH))
        torch.testing.assert_close(ours(video, None)[0], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("per_token", [False, True])
def test_gradients_equal_diffusers(version: str, per_token: bool) -> None:
    ours = make(replace(TINY[version], av_timestep="own"))
    twin = diffusers_twin(ours)
    video, audio = streams(ours.config, per_token=per_token)
    target = torch.randn(BATCH, T_VIDEO, 8, generator=torch.Generator().manual_seed(3))
    for out in (ours(video, audio), run_diffusers(twin, video, audio, cross=False)):
        ((out[0] - target).square().mean() + (out[1] - target[:, :T_AUDIO]).square().mean()).backward()
    names = diffusers_names("transformer", ours.state_dict())
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in ours.named_parameters():
        ours_grad, theirs_grad = parameter.grad, gradients[names[name]]
        assert ours_grad is not None, name
        assert theirs_grad is not None, name
        assert (ours_grad - theirs_grad).norm() <= 1e-4 * theirs_grad.norm() + 1e-9, name


@pytest.mark.parametrize("every", [1, 2])
def test_recomputation_changes_no_gradient(every: int) -> None:
    video, audio = streams(TINY_2_3, per_token=True)
    gradients = []
    for n in (0, every):
        model = make(TINY_2_3)
        model.set_activation_checkpointing(n)
        out = model(video, audio)
        (out[0].square().mean() + out[1].square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("version", TINY)
def test_skipping_cross_modal_is_running_alone(version: str) -> None:
    model = make(TINY[version])
    video, audio = streams(model.config, per_token=True)
    with torch.no_grad():
        both = model(video, audio, skip_cross_modal=True)
        assert torch.equal(both[0], model(video, None)[0])
        assert torch.equal(both[1], model(None, audio)[1])
        joined = model(video, audio)
        mixed = model(video, audio, skip_cross_modal=torch.tensor([True, False]))
    for index in (0, 1):
        torch.testing.assert_close(mixed[index][0], both[index][0])
        torch.testing.assert_close(mixed[index][1], joined[index][1])
        assert (mixed[index][0] - joined[index][0]).abs().max() > 1e-4


@pytest.mark.parametrize("version", TINY)
def test_stg_equals_diffusers(version: str) -> None:
    model = make(replace(TINY[version], av_timestep="own"))
    video, audio = streams(model.config)
    twin = diffusers_twin(model, perturbed_attn=True)
    with torch.no_grad():
        plain, perturbed = model(video, audio), model(video, audio, stg_blocks=[1])
        assert (plain[0] - perturbed[0]).abs().max() > 1e-4
        mask = torch.zeros(BATCH)
        kwargs = {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": mask}
        assert_equal(perturbed, run_diffusers(twin, video, audio, cross=False, **kwargs))
        one = model(video, audio, stg_blocks=[1], stg_samples=torch.tensor([False, True]))
    for index in (0, 1):
        torch.testing.assert_close(one[index][0], plain[index][0])
        torch.testing.assert_close(one[index][1], perturbed[index][1])


def test_masks() -> None:
    """Masked text has no effect; a 0/1 self-attention mask equals that of diffusers, and the bool mask equals it."""
    model = make(replace(TINY_2_0, av_timestep="own"))
    video, audio = streams(model.config)
    seen = torch.ones(BATCH, T_TEXT)
    seen[:, 4:] = 0
    cut = [replace(m, context=m.context[:, :4]) for m in (video, audio)]
    masked = [replace(m, context_mask=seen) for m in (video, audio)]
    strength = (torch.rand(BATCH, T_VIDEO, T_VIDEO, generator=torch.Generator().manual_seed(5)) > 0.3).float()
    strength += torch.eye(T_VIDEO).clamp(max=1)
    strength = strength.clamp(max=1)
    with torch.no_grad():
        assert_equal(model(*masked), model(*cut))
        out = model(replace(video, attention_mask=strength), audio)
        assert_equal(out, model(replace(video, attention_mask=strength.bool()), audio))
        twin = diffusers_twin(model)
        theirs = run_diffusers(twin, video, audio, cross=False, video_self_attention_mask=strength)
        assert_equal(out, theirs)


def test_a_half_strength_scales_attention_by_half() -> None:
    from model.attention import attend
    from model.transformer import _attention_bias

    q, k, v = (torch.randn(1, 4, 1, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    strength = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(9))
    weights = torch.einsum("bthd,bshd->bhts", q, k).div(8**0.5).exp() * strength[:, None]
    expected = torch.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(attend(q, k, v, _attention_bias(strength, torch.float32)), expected)


def test_an_expanded_sigma_equals_one_written_out() -> None:
    model = make(TINY_2_3)
    video, audio = streams(model.config)
    expanded = replace(video, timesteps=video.sigma[:, None].expand(BATCH, T_VIDEO))
    single = replace(video, timesteps=video.sigma[:, None])
    with torch.no_grad():
        written = model(video, audio)
        assert_equal(model(expanded, audio), written)
        assert_equal(model(single, audio), written)


def test_initialisation_predicts_nothing_and_learns() -> None:
    torch.manual_seed(0)
    model = DualStreamTransformer(TINY_2_0)
    video, audio = streams(model.config)
    out = model(video, audio)
    assert all(not x.any() for x in out)
    assert not any(p.isnan().any() or p.isinf().any() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = torch.randn_like(video.latent)
    losses = []
    for _ in range(20):
        velocities = model(video, audio)
        loss = (velocities[0] - target).square().mean() + (velocities[1] - target[:, :T_AUDIO]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("version", TINY)
def test_blocks_compile_without_graph_breaks(version: str) -> None:
    model = make(TINY[version])
    video, audio = streams(model.config, per_token=True)
    expected = model(video, audio)
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    out = model(video, audio)
    assert_equal(out, expected)
    out[0].square().mean().backward()
    assert model.transformer_blocks[0].attn1.to_q.weight.grad is not None  # pyright: ignore


@pytest.mark.parametrize(
    ("config", "total", "video", "audio"),
    [
        (TransformerConfig(), 18_876_174_592, 13_041_520_768, 3_265_980_544),
        (
            TransformerConfig(caption_channels=None, apply_gated_attention=True, cross_attention_adaln=True),
            18_988_838_144,
            13_124_316_288,
            3_286_408_320,
        ),
    ],
)
def test_published_sizes(config: TransformerConfig, total: int, video: int, audio: int) -> None:
    with torch.device("meta"):
        model = DualStreamTransformer(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    shared = {n for n in sizes if "av_ca_" in n or "_a2v_ca_" in n or "audio_to_video" in n or "video_to_audio" in n}
    of_audio = {n for n in sizes if "audio_" in n} - shared
    assert sum(sizes.values()) == total
    assert sum(sizes[n] for n in of_audio) == audio
    assert sum(sizes[n] for n in shared) == total - video - audio
    assert len(model.state_dict()) == (3_510 if config.caption_channels else 4_186)


def test_refuses_what_does_not_fit() -> None:
    model = make(TINY_2_0)
    video, audio = streams(model.config)
    nan = video.timesteps.clone()
    nan[0, 3] = float("nan")
    cases: list[tuple[str, Modality | None, Modality | None]] = [
        ("give the transformer", None, None),
        ("video.timesteps.*NaN", replace(video, timesteps=nan), audio),
        ("not scaled by 1000", replace(video, timesteps=video.timesteps * 1000), audio),
        (r"audio.sigma is \(3,\)", video, replace(audio, sigma=torch.rand(3))),
        (r"video.latent is .*expected \(batch, tokens, 8\)", replace(video, latent=video.latent[..., :4]), audio),
        (r"video.positions is \(2, 3, 17, 2\)", replace(video, positions=video.positions[:, :, 1:]), audio),
        ("video.positions is torch.bfloat16", replace(video, positions=video.positions.bfloat16()), audio),
        (r"audio.context is .*expected \(2, 7, 24\)", video, replace(audio, context=audio.context[..., :3])),
        ("video.context_mask", replace(video, context_mask=torch.ones(2, 3)), audio),
        ("video.attention_mask", replace(video, attention_mask=torch.ones(2, 3, 3)), audio),
        ("batch of video is 2, of audio 1", video, streams(model.config, batch=1)[1]),
    ]
    for message, *inputs in cases:
        with pytest.raises(ValueError, match=message):
            model(*inputs)
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        model(video, audio, stg_blocks=[2])
    with pytest.raises(ValueError, match="bool"):
        model(video, audio, skip_cross_modal=torch.ones(2))
    with pytest.raises(ValueError, match="stream's width 128"):
        replace(TINY_2_0, cross_attention_dim=64)
    with pytest.raises(ValueError, match="gate_other"):
        replace(TINY_2_0, av_timestep="both")  # pyright: ignore[reportArgumentType]


def test_bfloat16_follows_float32() -> None:
    model = make(TINY_2_3)
    video, audio = streams(model.config, per_token=True)
    with torch.no_grad():
        exact = model(video, audio)
        rough = model.bfloat16()(video, audio)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b).norm() < 0.03 * a.norm()


@pytest.mark.parametrize("version", TINY)
def test_few_timesteps_are_embedded_once_each_with_the_same_gradients(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(TINY[version])
    video, audio = streams(model.config, per_token=True)
    timesteps, selection = layers.distinct_timesteps(video.timesteps, torch.float32)
    assert selection is not None
    torch.testing.assert_close((selection @ timesteps[0]), video.timesteps, rtol=0, atol=0)
    found = []
    for few in (layers.FEW_TIMESTEPS, 0):
        monkeypatch.setattr(layers, "FEW_TIMESTEPS", few)
        model.zero_grad()
        outputs = model(video, audio)
        torch.stack([x.square().sum() for x in outputs]).sum().backward()
        found.append([*outputs, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for few, every in zip(*found, strict=True):
        assert (few - every).norm() <= 1e-5 * every.norm()
