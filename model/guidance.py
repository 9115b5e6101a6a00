"""Modality-aware guidance (arXiv 2601.03233 §4): one x₀ prediction from up to four.

    x₀ = c + (s_text − 1)(c − u) + s_stg(c − p) + (s_modality − 1)(c − m)

c is the conditional prediction; u has the negative prompt; p passes the values of some self-attentions through
(spatio-temporal guidance, arXiv 2411.18664 §3); m skips all A↔V attention. A share φ of the result is rescaled to the
standard deviation of c (arXiv 2305.08891 §3.4).

Shapes: B batch; a prediction is (B, …).
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

GuidancePass = Literal["conditional", "unconditional", "perturbed", "isolated"]


@dataclass(frozen=True)
class GuidanceScales:
    """Strengths for one stream; the defaults are the published ones for video.

    Attributes:
        text: s_text, strength away from the negative prompt; 1 for none.
        stg: s_stg, strength away from the perturbed prediction; 0 for none.
        modality: s_modality, strength towards what the other stream adds; 1 for none.
        rescale: φ in [0, 1], share of the result that is rescaled; 0 for none.
    """

    text: float = 3.0
    stg: float = 1.0
    modality: float = 3.0
    rescale: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale {self.rescale} must be in [0, 1]")


NO_GUIDANCE = GuidanceScales(text=1.0, stg=0.0, modality=1.0, rescale=0.0)


@dataclass(frozen=True)
class Guidance:
    """Guidance of both streams.

    Attributes:
        video: strengths for the video.
        audio: strengths for the audio.
        stg_blocks: blocks that spatio-temporal guidance perturbs (published: 29 in 2.0, 28 in 2.3).
    """

    video: GuidanceScales = field(default_factory=GuidanceScales)
    audio: GuidanceScales = field(default_factory=lambda: GuidanceScales(text=7.0))
    stg_blocks: tuple[int, ...] = (29,)

    def passes(self, *, both_streams: bool) -> tuple[GuidancePass, ...]:
        """Return the names of the passes that these strengths need, "conditional" first.

        Args:
            both_streams: whether video and audio are both sampled; if not, "isolated" is never needed.
        """
        scales = (self.video, self.audio)
        needed: list[GuidancePass] = ["conditional"]
        if any(scale.text != 1 for scale in scales):
            needed.append("unconditional")
        if self.stg_blocks and any(scale.stg != 0 for scale in scales):
            needed.append("perturbed")
        if both_streams and any(scale.modality != 1 for scale in scales):
            needed.append("isolated")
        return tuple(needed)


def guide(predictions: dict[GuidancePass, Tensor], scales: GuidanceScales) -> Tensor:
    """Combine the x₀ predictions of all passes into one.

    Start from the conditional prediction c. For each other pass p add w·(c − p), with w from `scales` (see the module
    docstring). Then rescale a share `scales.rescale` of the result to the standard deviation of c, for each sample (the
    published code: over the batch, which is one sample).

    Args:
        predictions: x₀ of each pass, all (B, …); a pass that is missing adds nothing.
        scales: strengths.

    Returns:
        Guided x₀ (B, …) float32.
    """
    conditional = predictions["conditional"].float()
    guided = conditional
    weights: tuple[tuple[GuidancePass, float], ...] = (
        ("unconditional", scales.text - 1),
        ("perturbed", scales.stg),
        ("isolated", scales.modality - 1),
    )
    for name, weight in weights:
        if weight != 0 and name in predictions:
            guided = guided + weight * (conditional - predictions[name].float())
    if scales.rescale != 0 and guided is not conditional:
        over = tuple(range(1, guided.ndim))
        ratio = conditional.std(over, keepdim=True) / guided.std(over, keepdim=True)
        guided = guided * (scales.rescale * ratio + 1 - scales.rescale)
    return guided
