"""Ranks that share the tokens of a sample compute what one rank computes: predictions, gradients, losses."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import model
from model.modality import Modality, audio_positions, video_positions
from pipelines.training.driver import train
from pipelines.training.sequence_parallel import SequenceGroup
from pipelines.training.settings import TrainSettings, WorkerSettings
from tests.model.sizes import random_model
from tests.pipelines.training.support.encoded_set import BUCKET, write_conditioner, write_encoded_set
from tests.pipelines.training.support.training_runs import exact, mistake

F, H, W, T = 3, 1, 3, 5  # 9 and 5 tokens: neither is a multiple of two ranks


def _forward(group: SequenceGroup | None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return this rank's part of the predictions by stream, and of the gradients of a loss by parameter."""
    transformer = random_model(model.preset("tiny")).transformer
    config = transformer.config
    g = torch.Generator().manual_seed(0)
    width = config.caption_channels or config.cross_attention_dim

    def stream(tokens: int, channels: int, positions: torch.Tensor) -> Modality:
        sigma = torch.rand(2, generator=g)
        timesteps = sigma[:, None].repeat(1, tokens)
        timesteps[0, :2] = 0  # given tokens
        latent, context = (torch.randn(2, n, c, generator=g) for n, c in ((tokens, channels), (7, width)))
        return Modality(latent, timesteps, sigma, positions, context)

    video = stream(F * H * W, config.in_channels, video_positions(F, H, W, 24.0, batch=2))
    audio = stream(T, config.audio_in_channels, audio_positions(T, batch=2))
    if group is not None:
        transformer.set_attention(group.attention)
        video, audio = group.part("video", video), group.part("audio", audio)
    transformer.set_activation_checkpointing(2)
    skip = torch.tensor([False, True])
    found = dict(zip(("video", "audio"), transformer(video, audio, skip), strict=True))
    torch.stack([x.square().sum() for x in found.values()]).sum().backward()
    gradients = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
    return {name: x.detach() for name, x in found.items()}, gradients


def _work(rank: int, port: int, output: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(_forward(SequenceGroup(2)), f"{output}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_predict_and_learn_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_work, (port, str(tmp_path)), nprocs=2)
    predictions, gradients = _forward(None)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, whole in predictions.items():
        assert parts[0][0][name].shape[1] == parts[1][0][name].shape[1] + 1
        torch.testing.assert_close(torch.cat([part[0][name] for part in parts], dim=1), whole, rtol=1e-4, atol=1e-5)
    for name, whole in gradients.items():
        together = sum(part[1].get(name, torch.zeros(())) for part in parts)
        scale = float(whole.abs().max())
        torch.testing.assert_close(together, whole, rtol=1e-3, atol=1e-4 * scale, msg=name)


def settings(data: Path, start: Path, **changes) -> TrainSettings:
    base = {
        "input": str(data),
        "init_from": [str(start)],
        "steps": 8,
        "log_every": 1,
        "batch": {"tokens": 2 * (BUCKET.video_tokens + BUCKET.audio_tokens), "micro_batches": 2},
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "dit": {"conditioning": {"first_frame": 0.4, "audio_to_video": 0.2}},
    }
    return TrainSettings.model_validate(base | changes)


@pytest.mark.slow
def test_two_ranks_on_one_sample_give_the_loss_curve_of_one(ray_session, tmp_path):
    data, start = write_encoded_set(tmp_path / "encoded"), write_conditioner(tmp_path / "start")
    train("dit", settings(data, start, workers={"count": 1}), tmp_path / "one")
    train("dit", settings(data, start, workers={"count": 2, "sequence_parallel": 2}), tmp_path / "two")
    for ours, theirs in zip(exact(tmp_path / "two"), exact(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-4 if key.startswith("loss") else 1e-3), (key, ours["step"])


def test_groups_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="count 3 is not a multiple of sequence_parallel 2"):
        WorkerSettings(count=3, sequence_parallel=2)
    data, start = write_encoded_set(tmp_path / "encoded"), write_conditioner(tmp_path / "start")
    heads = model.preset("tiny").transformer.num_attention_heads
    many = {"count": 2 * heads, "sequence_parallel": 2 * heads}
    said = mistake("dit", settings(data, start, workers=many), tmp_path / "run")
    assert f"sequence_parallel {2 * heads} does not divide {heads} attention heads" in said
