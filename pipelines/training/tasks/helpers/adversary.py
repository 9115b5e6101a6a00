"""The adversary of a generator: discriminators that learn to tell what it makes from what is real, under their own
DeepSpeed engine and optimizer (generative adversarial networks, arXiv 1406.2661).

From `start_step` on, each micro-batch is judged in the generator's forward pass and then teaches the discriminators, so
that both sides take one optimizer step per batch. They meet in one tensor only: the gradient of the adversarial loss
with regard to what was made. No gradient of the generator's loss reaches a discriminator's parameter, and neither
engine's backward pass runs through the other's modules, so that each is sharded on its own.

Spectral norms estimate in training mode, whenever they are run; here the first judgement of a step is the only one in
training mode, so that the estimates do not depend on how many micro-batches a rank takes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.discriminators import (
    Judgement,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)
from pipelines.training.schedule import learning_rate
from pipelines.training.settings import AdversarySettings, OptimizerSettings
from pipelines.training.tasks.base import Mean, per_sample

_LOSSES = {
    "hinge": (hinge_generator_loss, hinge_discriminator_loss),
    "least-squares": (least_squares_generator_loss, least_squares_discriminator_loss),
}


class Discriminators(nn.Module):
    """A judge of `model.discriminators` with the losses of both sides: the module that DeepSpeed wraps."""

    def __init__(
        self,
        judge: nn.Module,
        objective: Literal["hinge", "least-squares"],
        options: AdversarySettings,
        feature_matching: float = 0.0,
    ) -> None:
        super().__init__()
        self.judge, self.options, self.feature_matching = judge, options, feature_matching
        self._generator_loss, self._discriminator_loss = _LOSSES[objective]

    def forward(
        self, real: Tensor, fake: Tensor, weights: Tensor, side: Literal["generator", "discriminators"]
    ) -> tuple[Tensor, dict[str, Mean]]:
        """A side's weighted mean loss, and the means to be logged. real, fake: (B, …) as the judge takes it."""
        return (
            self._generator(real, fake, weights) if side == "generator" else self._discriminators(real, fake, weights)
        )

    def _generator(self, real: Tensor, fake: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Mean]]:
        judged = self.judge(fake)
        self.eval()  # a second judgement would estimate the spectral norms again
        adversarial = loss = self._generator_loss(judged)
        means = {"loss/adversarial": adversarial}
        if self.feature_matching:
            with torch.no_grad():
                truth = self.judge(real)
            means["loss/feature_matching"] = feature_matching_loss(truth, judged)
            loss = loss + self.feature_matching * means["loss/feature_matching"]
        return per_sample(loss, weights, means)

    def _discriminators(self, real: Tensor, fake: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Mean]]:
        both: list[Judgement] = self.judge(torch.cat([real, fake]))
        size = len(real)
        truth = [Judgement(j.logits[:size], [x[:size] for x in j.features]) for j in both]
        made = [Judgement(j.logits[size:], [x[size:] for x in j.features]) for j in both]
        loss = self._discriminator_loss(truth, made)
        means = {"discriminator/loss": loss, "discriminator/real": _score(truth), "discriminator/fake": _score(made)}
        return per_sample(loss, weights, means)


def _score(judged: list[Judgement]) -> Tensor:
    """(B,): mean logit over the patches of each sub-discriminator, and over these."""
    return torch.stack([j.logits.flatten(1).mean(1) for j in judged]).mean(0)


@dataclass(frozen=True)
class Verdict:
    """The adversarial loss of what was made.

    Attributes:
        value: (), the loss (feature matching within), detached.
        gradient: of the loss with regard to what was made, of its shape.
        means: to be logged.
    """

    value: Tensor
    gradient: Tensor
    means: dict[str, Mean]

    def loss(self, fake: Tensor) -> Tensor:
        """A scalar of that value and, with regard to `fake`, of that gradient."""
        return self.value + ((fake - fake.detach()) * self.gradient).sum()


class Adversary:
    """The discriminators of a run and how they are trained.

    Args:
        engine: DeepSpeed's, around `Discriminators`.
        optimizer: their own rates; see `own_optimizer`.
        steps: of the whole run.
    """

    def __init__(self, engine: Any, optimizer: OptimizerSettings, steps: int) -> None:
        self.engine, self._optimizer, self._steps = engine, optimizer, steps
        self._options: AdversarySettings = engine.module.options
        self._pair: tuple[Tensor, Tensor, Tensor] | None = None
        self._first = True
        self.skipped = 0

    def begin(self, step: int) -> bool:
        """Before a step's first micro-batch: whether the adversary takes part in the step."""
        start = self._options.start_step
        if step < start:
            return False
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self._optimizer, step - start, self._steps - start)
        self._first = True
        return True

    def judge(self, real: Tensor, fake: Tensor, weights: Tensor) -> Verdict:
        """What the discriminators say to `fake`; the pair is kept for `learn`. real, fake: (B, …); weights: (B,)."""
        self._pair = (real, fake.detach(), weights)
        shown = fake.detach().requires_grad_()
        self.engine.module.train(self._first)
        loss, means = self.engine.module(real, shown, weights, "generator")
        self.engine.module.eval()
        self._first = False
        # With regard to the samples alone: the parameters' gradients are neither computed nor reduced.
        (gradient,) = torch.autograd.grad(loss, shown)
        return Verdict(loss.detach(), gradient, means)

    def learn(self) -> dict[str, Mean]:
        """The discriminators' backward pass and step on what was judged last; the means to be logged."""
        assert self._pair is not None
        loss, means = self.engine(*self._pair, "discriminators")
        self._pair = None
        self.engine.backward(loss)
        self.engine.step()
        return means

    def end(self) -> dict[str, Mean]:
        """After a step's last micro-batch: the norm of its gradient, where it was finite."""
        skipped, self.skipped = self.skipped, self.engine.skipped_steps
        if skipped != self.skipped:
            return {}
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.engine.device)
        return {"discriminator/grad_norm": (norm, torch.ones_like(norm))}


def patch_discriminators(options: AdversarySettings, dims: int, channels: int) -> Discriminators | None:
    """PatchGAN with the hinge loss over `dims` dimensions of `channels`; None where its weight is 0."""
    if not options.weight:
        return None
    config = PatchDiscriminatorConfig(dims=dims, in_channels=channels, channels=options.channels)
    return Discriminators(PatchDiscriminator(config), "hinge", options)


def own_optimizer(run: OptimizerSettings, options: AdversarySettings) -> OptimizerSettings:
    """The run's optimizer settings with the discriminators' own rates."""
    return run.model_copy(update={name: getattr(options, name) for name in ("lr", "beta1", "beta2")})
