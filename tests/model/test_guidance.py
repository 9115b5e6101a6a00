"""Guidance equals the published guider, and requests only the passes that it uses."""

import pytest
import torch

from model.guidance import NO_GUIDANCE, Guidance, GuidancePass, GuidanceScales, guide

NAMES: tuple[GuidancePass, ...] = ("conditional", "unconditional", "perturbed", "isolated")


@pytest.mark.parametrize(
    "scales",
    [GuidanceScales(), GuidanceScales(text=7.0), GuidanceScales(rescale=0.0), GuidanceScales(stg=0.0), NO_GUIDANCE],
)
def test_equals_the_published_guider(scales: GuidanceScales) -> None:
    guiders = pytest.importorskip("ltx_core.components.guiders")
    c, u, p, m = (torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(i)) for i in range(4))
    params = guiders.MultiModalGuiderParams(
        cfg_scale=scales.text, stg_scale=scales.stg, rescale_scale=scales.rescale, modality_scale=scales.modality
    )
    expected = guiders.MultiModalGuider(params).calculate(c, u, p, m)
    predictions: dict[GuidancePass, torch.Tensor] = dict(zip(NAMES, (c, u, p, m), strict=True))
    torch.testing.assert_close(guide(predictions, scales), expected)


def test_samples_do_not_depend_on_each_other() -> None:
    both: dict[GuidancePass, torch.Tensor] = {name: torch.randn(2, 9, 4) for name in NAMES}
    together = guide(both, GuidanceScales())
    second: dict[GuidancePass, torch.Tensor] = {name: x[1:] for name, x in both.items()}
    torch.testing.assert_close(together[1:], guide(second, GuidanceScales()))


def test_passes() -> None:
    assert Guidance().passes(both_streams=True) == ("conditional", "unconditional", "perturbed", "isolated")
    assert Guidance().passes(both_streams=False) == ("conditional", "unconditional", "perturbed")
    assert Guidance(NO_GUIDANCE, NO_GUIDANCE).passes(both_streams=True) == ("conditional",)
    assert Guidance(stg_blocks=()).passes(both_streams=True) == ("conditional", "unconditional", "isolated")
    with pytest.raises(ValueError, match="rescale"):
        GuidanceScales(rescale=2.0)
