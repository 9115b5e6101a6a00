"""The adaptive weight of an adversarial loss: ‖∇L_rec‖ / (‖∇L_GAN‖ + δ) (VQGAN, arXiv 2012.09841 eq. 7).

The gradients are those with respect to the weight of the decoder's last layer. This layer is a convolution, so the
gradient of its weight depends on the layer's input and on the gradient of its output, but not on the weight itself.
Every rank has both completely: with ZeRO-3 nothing is gathered, and no backward pass runs through a sharded module. The
ratio is computed per micro-batch, as the loss is, so it is the same with any number of ranks.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.tasks.helpers.frozen import Frozen

_DELTA = 1e-6  # eq. 7
# As in the paper's code (taming-transformers). The limit is reached when the discriminator's output is constant.
_LARGEST = 1e4


class LastLayer:
    """A decoder's last convolution, at which the adaptive weight of an adversarial loss is computed.

    Create it before the module is sharded, because it copies the layer. A hook stores the layer's input in each
    forward pass, and `balance` uses that input once.

    Args:
        layer: a module around one convolution, `layer.conv`; not yet sharded.
        after: the function from the layer's output to the decoder's output.
    """

    def __init__(self, layer: nn.Module, after: Callable[[Tensor], Tensor]) -> None:
        self._twin: Frozen[Any] = Frozen(copy.deepcopy(layer))
        self._after = after
        self._input: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Store the layer's input, in float32 and without its graph, for `balance`."""
        self._input = inputs[0].detach().float()

    def balance(self, loss: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        """Return (): the adaptive weight, from the gradients of both losses with respect to the layer's weight.

        Args:
            loss: the reconstruction loss (); its graph is not freed.
            output: what the decoder returned in its last forward pass.
            gradient: gradient of the adversarial loss with respect to `output`.
        """
        (of_loss,) = torch.autograd.grad(loss, output, retain_graph=True)
        x, self._input = self._input, None
        assert x is not None
        twin = self._twin.on(x.device)
        weight = twin.conv.weight.detach().requires_grad_()
        again = self._after(torch.func.functional_call(twin, {"conv.weight": weight}, (x,)))
        norms = [torch.autograd.grad(again, weight, g, retain_graph=True)[0].norm() for g in (of_loss, gradient)]

        return (norms[0] / (norms[1] + _DELTA)).clamp(max=_LARGEST)
