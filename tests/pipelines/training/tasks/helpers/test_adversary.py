"""The adversary, its adaptive weight and the other losses, without workers: a plain engine replaces DeepSpeed's."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

import model
from model.audio_vae import AudioVAE
from model.discriminators import PatchDiscriminator, PatchDiscriminatorConfig, hinge_generator_loss
from model.video_vae import VideoVAE
from model.vocoder import Vocoder, VocoderConfig, VocoderWithBWE, VocoderWithBWEConfig
from pipelines.training.settings import AdversarySettings, OptimizerSettings, TrainSettings
from pipelines.training.tasks.audio_vae import AudioVAETask, coarse_error
from pipelines.training.tasks.helpers.adversary import Adversary, Discriminators, discriminator_optimizer
from pipelines.training.tasks.helpers.clips import PixelBatch, SoundBatch
from pipelines.training.tasks.helpers.perceptual import load_perceptual
from pipelines.training.tasks.video_vae import VideoVAETask
from pipelines.training.tasks.vocoder import VocoderTask

RUN = OptimizerSettings(lr=1e-3, warmup_steps=0, schedule="constant")


class PlainEngine:
    """The part of a DeepSpeed engine that `Adversary` uses, in plain PyTorch."""

    def __init__(self, module: nn.Module, options: OptimizerSettings) -> None:
        self.module, self.device, self.skipped_steps = module, torch.device("cpu"), 0
        self.optimizer = torch.optim.AdamW(module.parameters(), options.lr, betas=(options.beta1, options.beta2))

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> Tensor:
        return self.norm


def adversary(discriminators: Discriminators | None, steps: int = 100) -> Adversary:
    assert discriminators is not None
    options = discriminator_optimizer(RUN, discriminators.options)
    return Adversary(PlainEngine(discriminators, options), options, steps)


def settings(**changes) -> TrainSettings:
    return TrainSettings.model_validate({"seed": 3, **changes})


AGAINST = {"weight": 0.7, "start_step": 2, "channels": 8, "lr": 1e-3}


@pytest.fixture(scope="module")
def video() -> tuple[VideoVAETask, VideoVAE, PixelBatch]:
    torch.manual_seed(0)
    vae = model.build("tiny", components=["video_vae"]).video_vae
    pixels = torch.rand(2, 3, 9, 64, 64) * 2 - 1
    task = VideoVAETask(settings(video_vae={"adversary": AGAINST}))
    return task, vae, PixelBatch(("a", "b"), torch.tensor([2.0, 0.0]), pixels)


@pytest.fixture(scope="module")
def audio() -> tuple[AudioVAETask, AudioVAE, SoundBatch]:
    torch.manual_seed(0)
    vae = model.build("tiny", components=["audio_vae"]).audio_vae
    mel = torch.randn(2, 2, 29, 64) - 6
    task = AudioVAETask(settings(audio_vae={"adversary": AGAINST}))
    return task, vae, SoundBatch(("a", "b"), torch.tensor([1.5, 0.5]), mel, torch.zeros(2, 2, 29 * 240))


def trained(vae: VideoVAE | AudioVAE) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in vae.named_parameters()}
    vae.zero_grad()
    return {name: torch.zeros(()) if grad is None else grad for name, grad in found.items()}


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_the_generator_hears_the_adversary_by_the_adaptive_weight(kind, request):
    """Compare with plain autograd through discriminators and decoder, and with eq. 7 at the last layer's weight."""
    task, vae, batch = request.getfixturevalue(kind)
    torch.manual_seed(1)
    against = adversary(task.discriminators())
    trainee = task.build({f"{kind}_vae": vae})

    plain, logged = trainee(batch, 5)
    plain.backward()
    alone = trained(vae)
    assert "loss/adversarial" not in logged

    against.begin(5)
    loss, logged = trainee(batch, 5, against)
    loss.backward()
    both = trained(vae)
    assert all(p.grad is None for p in against.engine.module.parameters())

    # Compute the same by hand: the earlier discriminator, and one graph through both modules.
    made = {}
    hook = vae.decoder.register_forward_hook(lambda module, inputs, output: made.update(output=output))
    plain, again = trainee(batch, 5)
    hook.remove()
    judged = hinge_generator_loss(against.engine.module.judge(made["output"]))
    adversarial = (batch.weights * judged).mean()
    weight = vae.decoder.conv_out.conv.weight
    # The KL divergence has no gradient at the decoder.
    of_loss, of_adversary = (torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (plain, adversarial))
    balance = of_loss / (of_adversary + 1e-6)
    total, count = logged["adaptive_weight"]
    assert count == 1
    assert total.item() == pytest.approx(balance.item(), rel=1e-4)
    assert logged["loss/adversarial"][0].item() == pytest.approx(judged[batch.weights > 0].sum().item(), rel=1e-5)
    assert logged["loss"][0].item() == pytest.approx(again["loss"][0].item())
    (plain + 0.7 * balance * adversarial).backward()
    expected = trained(vae)
    assert (both["decoder.conv_in.conv.weight"] - alone["decoder.conv_in.conv.weight"]).norm() > 0
    for name, grad in expected.items():
        torch.testing.assert_close(both[name], grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_bfloat16_gives_nearly_the_same(kind, request):
    """As with DeepSpeed's bf16: weights of the generator in bfloat16, discriminators and data in float32."""
    task, vae, batch = request.getfixturevalue(kind)
    seen = []
    for type_ in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        against = adversary(task.discriminators())
        against.begin(2)
        trainee = task.build({f"{kind}_vae": copy.deepcopy(vae)}).to(type_)
        loss, logged = trainee(batch, 5, against)
        loss.backward()
        against.learn()
        seen.append(loss.item())
        assert loss.dtype == torch.float32
        assert logged["adaptive_weight"][0] > 0
        assert all(p.grad.isfinite().all() for p in trainee.parameters() if p.grad is not None)
    assert seen[1] == pytest.approx(seen[0], rel=0.1)


def test_the_adversary_begins_at_its_step_with_a_rate_of_its_own():
    options = AdversarySettings(weight=1.0, start_step=3, lr=0.5)
    warming = OptimizerSettings(lr=1e-3, warmup_steps=2, schedule="constant")
    judge = PatchDiscriminator(PatchDiscriminatorConfig(dims=2, in_channels=2, channels=4))
    own = discriminator_optimizer(warming, options)
    against = Adversary(PlainEngine(Discriminators(judge, "hinge", options), own), own, steps=10)
    assert [against.begin(step) for step in range(5)] == [False, False, False, True, True]
    rates = []
    for step in (3, 4, 5):
        against.begin(step)
        rates.append(against.engine.optimizer.param_groups[0]["lr"])
    assert rates == [0.25, 0.5, 0.5]


def smooth(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 5, 4, 4, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, (5, 32, 32), mode="trilinear")


def test_the_adversary_learns(video):
    torch.manual_seed(0)
    against = adversary(video[0].discriminators())
    weights = torch.ones(2)
    losses, gaps = [], []
    for step in range(2, 42):
        against.begin(step)
        real = smooth(2, step)
        against.judge(real, real + 0.3 * torch.randn_like(real), weights)
        means = against.learn()
        assert against.end()["discriminator/grad_norm"][0].isfinite()
        losses.append(means["discriminator/loss"][0].item() / 2)
        gaps.append((means["discriminator/real"][0] - means["discriminator/fake"][0]).item() / 2)
    assert losses[0] == pytest.approx(1, abs=0.1)  # the hinge loss of a discriminator that returns 0
    assert sum(losses[-5:]) / 5 < 0.7
    assert sum(gaps[-5:]) / 5 > 0.5


def test_a_repeat_of_weight_zero_teaches_nobody(video):
    torch.manual_seed(0)
    against = adversary(video[0].discriminators())
    against.begin(2)
    real, fake = smooth(3, 0), smooth(3, 1)
    verdict = against.judge(real, fake, torch.tensor([1.5, 1.5, 0.0]))
    assert verdict.gradient[2].abs().max() == 0
    assert verdict.gradient[0].abs().max() > 0
    assert verdict.means["loss/adversarial"][1] == 2
    x = fake.clone().requires_grad_()
    verdict.loss(x).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, verdict.gradient)


def test_spectral_norms_do_not_depend_on_the_micro_batches_of_a_rank(video):
    """One rank runs twice the micro-batches of each of two ranks; the estimates must be the same."""
    seen = []
    for micro_batches in (1, 2):
        torch.manual_seed(0)
        against = adversary(video[0].discriminators())
        against.engine.optimizer = SimpleNamespace(param_groups=[], step=lambda: None, zero_grad=lambda: None)
        for step in (2, 3):
            against.begin(step)
            for _ in range(micro_batches):
                against.judge(smooth(1, 0), smooth(1, 1), torch.ones(1))
                against.learn()
        seen.append({name: b.clone() for name, b in against.engine.module.named_buffers()})
    assert any("_u" in name for name in seen[0])
    for name, value in seen[0].items():
        assert torch.equal(value, seen[1][name]), name


def test_the_same_sound_is_judged_alike_in_every_micro_batch_of_a_step():
    """Feature matching judges twice, but must update the estimates only once.

    With two updates only the first micro-batch of each rank would use the earlier estimates, and the result would
    depend on the number of ranks.
    """
    torch.manual_seed(0)
    against = adversary(VocoderTask(settings(vocoder={"adversary": AGAINST})).discriminators())
    real, fake = torch.randn(2, 1, 2, 2048).unbind(0)
    against.begin(2)
    first, second = (against.judge(real, fake, torch.ones(1)) for _ in range(2))
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.gradient, second.gradient)


def test_the_judge_has_the_layers_under_spectral_norm_that_the_test_above_means(video):
    discriminators = video[0].discriminators()
    assert discriminators is not None
    assert isinstance(discriminators.judge, PatchDiscriminator)
    assert all(parametrize.is_parametrized(layer) for layer in discriminators.judge.layers)


def test_no_weight_no_discriminators():
    for task in (VideoVAETask, AudioVAETask, VocoderTask):
        assert task(settings()).discriminators() is None


def test_coarser_mels_hear_what_is_displaced_less_than_what_is_lost():
    mel = torch.full((1, 2, 64, 64), -9.0)
    mel[:, :, 16:48:8, 16:48:8] = 0.0
    moved, lost = mel.roll(1, dims=2), torch.full_like(mel, -9.0)
    assert coarse_error(mel, mel) == 0
    assert (moved - mel).abs().mean() > (lost - mel).abs().mean()
    assert coarse_error(moved, mel) < 0.7 * coarse_error(lost, mel)
    silent = torch.full_like(mel, -200.0, requires_grad=True)
    coarse_error(silent, mel).sum().backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


# The vocoder


def sound(samples_per_frame: int, frames: int = 33) -> SoundBatch:
    generator = torch.Generator().manual_seed(0)
    phase = torch.arange(frames * samples_per_frame) * 0.05
    wave = 0.3 * torch.sin(phase) * torch.tensor([[[1.0], [0.5]]])
    return SoundBatch(("a",), torch.ones(1), torch.randn(1, 2, frames, 64, generator=generator) - 6, wave)


def test_the_vocoder_hears_decoded_mels_in_a_part_of_the_steps_and_does_not_change_the_audio_vae(audio):
    _, vae, _ = audio
    torch.manual_seed(0)
    options = {
        "decoded_fraction": 0.4,
        "stft": 0.0,
        "mel": 45.0,
        "adversary": AGAINST | {"start_step": 0, "channels": 4},
    }
    task = VocoderTask(settings(vocoder=options))
    assert task.uses == ("vocoder", "audio_vae")
    vocoder = model.build("tiny", components=["vocoder"]).vocoder
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    trainee = task.build({"vocoder": vocoder, "audio_vae": vae})
    assert {name.split(".")[0] for name, _ in trainee.named_parameters()} == {"vocoder"}
    assert trainee.components() == {"vocoder": vocoder}

    batch = sound(240)
    heard = [trainee._input_mel(batch.mel, step) for step in range(60)]
    with torch.no_grad():
        decoded = vae.decode_raw(vae.encode_distribution(batch.mel)[0])
    assert decoded.shape[2] == 33
    is_decoded = [torch.equal(mel, decoded) for mel in heard]
    assert all(torch.equal(mel, batch.mel) for mel, other in zip(heard, is_decoded, strict=True) if not other)
    assert 12 < sum(is_decoded) < 36

    against = adversary(task.discriminators())
    optimizer = torch.optim.AdamW(trainee.parameters(), 1e-3)
    for step in (is_decoded.index(True), is_decoded.index(False)):
        against.begin(step)
        loss, logged = trainee(batch, step, against)
        loss.backward()
        assert not any(p.grad is not None for p in vae.parameters())
        optimizer.step()
        optimizer.zero_grad()
        learnt = against.learn()
        expected = 45 * logged["loss/mel"][0] + 0.7 * (
            logged["loss/adversarial"][0] + 2 * logged["loss/feature_matching"][0]
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        # Least squares of eight sub-discriminators that return 0: each has a loss of 1 on the real samples.
        assert 0 < learnt["discriminator/loss"][0].item() < 16
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_vocoder_with_bandwidth_extension_is_trained():
    torch.manual_seed(0)
    small = {"res_kernels": (3,), "res_dilations": ((1, 3),), "activation": "snakebeta", "final_bias": False}
    config = VocoderWithBWEConfig(
        vocoder=VocoderConfig(
            channels=64, upsample_rates=(5, 4, 4, 2), upsample_kernels=(11, 8, 8, 4), final="clamp",
            sample_rate=16_000, **small,
        ),
        bwe=VocoderConfig(
            channels=32, upsample_rates=(6, 5, 4, 2), upsample_kernels=(12, 11, 8, 4), final="none",
            sample_rate=48_000, **small,
        ),
    )  # fmt: skip
    task = VocoderTask(settings(preset="ltx2.3-22b"))
    vocoder = VocoderWithBWE(config)
    trainee = task.build({"vocoder": vocoder})
    hiss = 0.1 * torch.randn(1, 2, 33 * 480)
    batch = SoundBatch(("a",), torch.ones(1), torch.randn(1, 2, 33, 64) - 4, hiss)
    optimizer = torch.optim.AdamW(trainee.parameters(), 3e-4)
    losses = []
    for step in range(12):
        loss, _ = trainee(batch, step)
        loss.backward()
        if not step:
            for part in (vocoder.vocoder, vocoder.bwe_generator):
                assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert task.flops(trainee, batch) > 1e6


def test_a_plain_vocoder_needs_no_audio_vae():
    vocoder = model.build("tiny", components=["vocoder"]).vocoder
    assert isinstance(vocoder, Vocoder)
    trainee = VocoderTask(settings()).build({"vocoder": vocoder})
    loss, logged = trainee(sound(240, frames=16), 0)
    assert set(logged) == {"loss", "loss/stft", "loss/mel"}
    assert loss.isfinite()


# The perceptual distance


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """Write torchvision's vgg16 with random weights, without its classifier, and random heads into one folder."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vgg")
    stored = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(stored | {"classifier.0.weight": torch.zeros(2)}, folder / "vgg16.pth")
    save_file(stored, folder / "vgg16.safetensors")
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(widths)}
    torch.save(heads, folder / "heads.pth")
    return folder


def test_the_perceptual_distance(backbone):
    plain = load_perceptual(str(backbone / "vgg16.pth"), "")
    again = load_perceptual(str(backbone / "vgg16.safetensors"), "")
    weighted = load_perceptual(str(backbone / "vgg16.pth"), str(backbone / "heads.pth"))
    x = smooth(2, 0)
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert plain(x, x).tolist() == [0, 0]
    distance = plain(x, noisy)
    assert (distance > 0).all()
    assert torch.equal(again(x, noisy), distance)
    # Heads between 0 and 1 reduce each channel's part.
    assert (weighted(x, noisy) < distance).all()
    # Per sample, with the mean over frames.
    torch.testing.assert_close(plain(x[1:], noisy[1:])[0], distance[1])
    frames = torch.stack([plain(x[:1, :, n : n + 1], noisy[:1, :, n : n + 1])[0] for n in range(x.shape[2])])
    torch.testing.assert_close(frames.mean(), distance[0])


def test_the_perceptual_loss_reaches_the_vae_and_not_the_backbone(backbone, video):
    _, vae, batch = video
    named = {"perceptual": {"weight": 2.0, "backbone": str(backbone / "vgg16.pth")}}
    with_loss, without = (VideoVAETask(settings(video_vae=chosen)).build({"video_vae": vae}) for chosen in (named, {}))
    assert len(list(with_loss.parameters())) == len(list(without.parameters()))
    gradients = []
    for trainee in (with_loss, without):
        loss, logged = trainee(batch, 0)
        loss.backward()
        gradients.append(trained(vae)["decoder.conv_in.conv.weight"])
        assert ("loss/perceptual" in logged) == (trainee is with_loss)
    assert not torch.allclose(*gradients)
    assert with_loss._perceptual is not None
    distances = itertools.islice(with_loss._perceptual.on(torch.device("cpu")).parameters(), 3)
    assert all(p.grad is None and not p.requires_grad for p in distances)
