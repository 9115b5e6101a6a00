"""model/ runs where only torch and its requirements are installed, so that it can be measured anywhere."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Hide every installed package except torch and the packages that torch requires.
HIDE = """
import importlib.metadata as metadata, re, sys

allowed, pending = set(), ["torch"]
while pending:
    name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
    if name in allowed:
        continue
    allowed.add(name)
    try:
        needs = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        continue
    pending += [re.match(r"[\\w.-]+", need).group() for need in needs if "extra ==" not in need]
tops = metadata.packages_distributions()
hidden = {top for top, owners in tops.items() if not any(re.sub(r"[-_.]+", "-", o).lower() in allowed for o in owners)}
assert {"numpy", "safetensors", "transformers", "diffusers", "ray"} <= hidden
hidden -= {"model"}  # this repository, installed in place


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import warnings; warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
"""

USE = """
import importlib, pkgutil
import model
for module in pkgutil.iter_modules(model.__path__):
    importlib.import_module(f"model.{module.name}")
import torch
from model.modality import Modality, audio_positions, video_positions
torch.set_num_threads(1)
ltx2 = model.build("tiny")
config, text = ltx2.transformer.config, ltx2.text_conditioner.config
states = tuple(torch.randn(1, 5, text.hidden_size) for _ in range(text.num_states))
contexts = ltx2.text_conditioner(states, torch.ones(1, 5))
sigma = torch.full((1,), 0.5)
tokens, audio_tokens = torch.randn(1, 12, config.in_channels), torch.randn(1, 9, config.audio_in_channels)
velocities = ltx2.transformer(
    Modality(tokens, sigma[:, None], sigma, video_positions(3, 2, 2, 24.0), contexts[0]),
    Modality(audio_tokens, sigma[:, None], sigma, audio_positions(9), contexts[1]),
)
(velocities[0].square().mean() + velocities[1].square().mean()).backward()
with torch.no_grad():
    mel = ltx2.audio_vae.decode(torch.randn(1, 8, 3, 16))
    assert ltx2.vocoder(mel).shape == (1, 2, 9 * 240)
    assert ltx2.video_vae.decode(torch.randn(1, 32, 2, 2, 2)).shape == (1, 3, 9, 64, 64)
assert model.build("ltx2-19b", "meta").transformer.proj_out.weight.is_meta
print("ran without:", *sorted(hidden & {"numpy", "safetensors", "transformers"}))
"""


def test_model_runs_with_torch_alone() -> None:
    run = subprocess.run([sys.executable, "-c", HIDE + USE], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "ran without: numpy safetensors transformers"
