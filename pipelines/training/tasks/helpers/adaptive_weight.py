"""The adaptive weight of an adversarial loss (VQGAN, arXiv 2012.09841 eq. 7): ‖∇L_rec‖ / (‖∇L_GAN‖ + δ), gradients with
regard to the weight of the decoder's last layer.

The last layer is a convolution, so the gradient of its weight is a function of its input and of the gradient of its
output, whatever the weight is. Both lie whole on every rank: nothing need be gathered where ZeRO-3 has partitioned the
weight, and no backward pass runs through a sharded module. The ratio is that of a micro-batch, as the loss is, and so
the same at any number of ranks.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.tasks.helpers.frozen import Frozen

_DELTA = 1e-6  # eq. 7
_LARGEST = 1e4  # as in the paper's code (taming-transformers): where the discriminator says the same to everything


class LastLayer:
    """Watches a decoder's last convolution.

    Args:
        layer: a module around one convolution, `layer.conv`; not yet sharded.
        after: from the layer's output to the decoder's.
    """

    def __init__(self, layer: nn.Module, after: Callable[[Tensor], Tensor]) -> None:
        self._twin: Frozen[Any] = Frozen(copy.deepcopy(layer))
        self._after = after
        self._input: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = inputs[0].detach().float()

    def balance(self, loss: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        """(): how much heavier than `gradient` the gradient of `loss` weighs on the layer; both with regard to
        `output`, what the decoder gave last. `loss` keeps its graph.
        """
        (own,) = torch.autograd.grad(loss, output, retain_graph=True)
        x, self._input = self._input, None
        assert x is not None
        twin = self._twin.on(x.device)
        weight = twin.conv.weight.detach().requires_grad_()
        again = self._after(torch.func.functional_call(twin, {"conv.weight": weight}, (x,)))
        norms = [torch.autograd.grad(again, weight, g, retain_graph=True)[0].norm() for g in (own, gradient)]
        return (norms[0] / (norms[1] + _DELTA)).clamp(max=_LARGEST)
