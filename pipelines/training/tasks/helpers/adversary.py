"""Adversarial training: discriminators with a DeepSpeed engine and an optimizer of their own (GAN, arXiv 1406.2661).

The generator is the trainee. From `start_step` on, the discriminators judge each micro-batch in the generator's forward
pass, and then learn from the same micro-batch, so both take one optimizer step per training step. The generator gets
one tensor from the discriminators: the gradient of the adversarial loss with respect to the fake samples. No gradient
of the generator's loss reaches a parameter of the discriminators, and neither engine's backward pass runs through the
other's modules, so ZeRO shards each of the two separately.

A spectral norm updates its estimate in every forward pass in training mode. Only the first judgement of a step runs in
training mode, so that the estimates do not depend on the number of micro-batches of a rank.
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
from pipelines.training.metrics import Mean, gradient_norm, per_sample
from pipelines.training.schedule import learning_rate, set_learning_rate
from pipelines.training.settings import AdversarySettings, OptimizerSettings

_LOSSES = {
    "hinge": (hinge_generator_loss, hinge_discriminator_loss),
    "least-squares": (least_squares_generator_loss, least_squares_discriminator_loss),
}


class Discriminators(nn.Module):
    """Discriminators with the losses of generator and discriminators: the module that DeepSpeed wraps.

    Args:
        judge: a discriminator of `model.discriminators`.
        objective: name of the pair of losses.
        options: weight, start and optimizer of the adversary.
        feature_matching: weight of the feature matching loss, relative to that of the adversarial loss; 0 for none.
    """

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
        """Compute the loss of the generator or that of the discriminators.

        Args:
            real: samples of the set, (B, …) as the judge takes them.
            fake: samples of the generator, of the same shape.
            weights: (B,) loss weights.
            side: whose loss to compute.

        Returns:
            The weighted mean loss (), and the means to log.
        """
        return (
            self._generator(real, fake, weights) if side == "generator" else self._discriminators(real, fake, weights)
        )

    def _generator(self, real: Tensor, fake: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Mean]]:
        """Return the generator's loss, which falls when the judge takes `fake` for real, and the means to log."""
        judged = self.judge(fake)
        self.eval()  # a second judgement in training mode would update the spectral norms again
        adversarial = loss = self._generator_loss(judged)
        means = {"loss/adversarial": adversarial}
        if self.feature_matching:
            with torch.no_grad():
                truth = self.judge(real)
            means["loss/feature_matching"] = feature_matching_loss(truth, judged)
            loss = loss + self.feature_matching * means["loss/feature_matching"]
        return per_sample(loss, weights, means)

    def _discriminators(self, real: Tensor, fake: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Mean]]:
        """Return the discriminators' loss, which falls when they tell `real` and `fake` apart, and the means to log."""
        both: list[Judgement] = self.judge(torch.cat([real, fake]))
        size = len(real)
        truth = [Judgement(j.logits[:size], [x[:size] for x in j.features]) for j in both]
        made = [Judgement(j.logits[size:], [x[size:] for x in j.features]) for j in both]
        loss = self._discriminator_loss(truth, made)
        means = {"discriminator/loss": loss, "discriminator/real": _score(truth), "discriminator/fake": _score(made)}
        return per_sample(loss, weights, means)


def _score(judged: list[Judgement]) -> Tensor:
    """Return (B,): mean logit over the patches of each sub-discriminator, then over the sub-discriminators."""
    return torch.stack([j.logits.flatten(1).mean(1) for j in judged]).mean(0)


@dataclass(frozen=True)
class Verdict:
    """The adversarial loss of a generator's samples, with its gradient.

    Attributes:
        value: (), the loss, with feature matching if it has a weight; detached.
        gradient: gradient of the loss with respect to the samples, of their shape.
        means: the means to log.
    """

    value: Tensor
    gradient: Tensor
    means: dict[str, Mean]

    def loss(self, fake: Tensor) -> Tensor:
        """Return a scalar with this value, whose gradient with respect to `fake` is `gradient`."""
        return self.value + ((fake - fake.detach()) * self.gradient).sum()


class Adversary:
    """The discriminators of a run, and their training.

    In each step the loop calls `begin`; then, per micro-batch, the trainee calls `judge` and the loop `learn`; then the
    loop calls `end`.

    Args:
        engine: the DeepSpeed engine around `Discriminators`.
        optimizer: settings of the discriminators' optimizer; see `discriminator_optimizer`.
        steps: number of steps of the run.

    Attributes:
        skipped: number of steps that the engine skipped, because the gradient norm was not finite.
    """

    def __init__(self, engine: Any, optimizer: OptimizerSettings, steps: int) -> None:
        self.engine, self._optimizer, self._steps = engine, optimizer, steps
        self._options: AdversarySettings = engine.module.options
        self._pair: tuple[Tensor, Tensor, Tensor] | None = None
        self._first = True
        self.skipped = 0

    def begin(self, step: int) -> bool:
        """Start a step: set the learning rate. Return whether the adversary takes part: False before `start_step`."""
        start = self._options.start_step
        if step < start:
            return False
        set_learning_rate(self.engine, learning_rate(self._optimizer, step - start, self._steps - start))
        self._first = True
        return True

    def judge(self, real: Tensor, fake: Tensor, weights: Tensor) -> Verdict:
        """Compute the adversarial loss of the generator's samples, and store both batches for `learn`.

        Args:
            real: samples of the set, (B, …).
            fake: samples of the generator, of the same shape.
            weights: (B,) loss weights.
        """
        self._pair = (real, fake.detach(), weights)
        shown = fake.detach().requires_grad_()
        self.engine.module.train(self._first)
        loss, means = self.engine.module(real, shown, weights, "generator")
        self.engine.module.eval()
        self._first = False
        # The gradient with respect to the samples only: none of a parameter is computed or reduced.
        (gradient,) = torch.autograd.grad(loss, shown)
        return Verdict(loss.detach(), gradient, means)

    def learn(self) -> dict[str, Mean]:
        """Train the discriminators on the micro-batch that was judged last; return the means to log."""
        assert self._pair is not None
        loss, means = self.engine(*self._pair, "discriminators")
        self._pair = None
        self.engine.backward(loss)
        self.engine.step()
        return means

    def end(self) -> dict[str, Mean]:
        """End a step; return the gradient norm to log, unless the engine skipped the step."""
        skipped, self.skipped = self.skipped, self.engine.skipped_steps
        if skipped != self.skipped:
            return {}
        return {"discriminator/grad_norm": gradient_norm(self.engine)}


def patch_discriminators(options: AdversarySettings, dims: int, channels: int) -> Discriminators | None:
    """Build a PatchGAN with the hinge loss; None when its weight is 0.

    Args:
        options: settings of the adversary.
        dims: number of dimensions of a sample after its channels: 2 for mels, 3 for video.
        channels: number of channels of a sample.
    """
    if not options.weight:
        return None
    config = PatchDiscriminatorConfig(dims=dims, in_channels=channels, channels=options.channels)
    return Discriminators(PatchDiscriminator(config), "hinge", options)


def discriminator_optimizer(run: OptimizerSettings, options: AdversarySettings) -> OptimizerSettings:
    """Return the run's optimizer settings with the discriminators' learning rate and betas."""
    return run.model_copy(update={name: getattr(options, name) for name in ("lr", "beta1", "beta2")})
