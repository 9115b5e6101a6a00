"""The command's verbs, flags and exit codes, on which users' scripts rely."""

import subprocess
import sys

import pytest

from jobs.cli import main
from jobs.verbs import VERBS

# Add a verb when it exists; never remove or rename one.
SURFACE = {
    "demo": {"--recipe", "--output", "--input"},
    "synth": {"--recipe", "--output", "--synth.clips", "--synth.seed"},
    "curate": {"--recipe", "--input", "--output", "--rejudge", "--curate.policy.salient-min", "--tracking.uri"},
    "calibrate": {"--recipe", "--labels", "--input", "--output"},
    "caption": {"--recipe", "--input", "--output", "--tracking.uri"},
    "encode": {"--recipe", "--input", "--output", "--tracking.uri"},
    "prepare": {"--recipe", "--input", "--output", "--tracking.uri"},
    "train": {"--recipe", "--output", "--train.steps", "--train.optimizer.lr", "--tracking.uri"},
    "plan": {"--recipe", "--nodes", "--gpus-per-node", "--gpu", "--mfu", "--train.batch.tokens"},
    "generate": {"--recipe", "--checkpoint", "--prompts", "--output", "--generate.seed", "--tracking.uri"},
    "export": {"--recipe", "--checkpoint", "--layout", "--output", "--parts"},
    "doctor": {"--recipe"},
}


def test_verbs_are_frozen():
    assert set(VERBS) == set(SURFACE)


@pytest.mark.parametrize("verb", SURFACE)
def test_help_names_the_flags(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert {flag for flag in SURFACE[verb] if flag not in shown} == set()


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["prepare", "--help"]])
def test_help_loads_no_heavy_library(args):
    heavy = ("torch", "ray", "scipy", "numpy", "pyarrow", "mlflow", "deepspeed", "transformers")
    # Prints what was loaded when the process ends, since help ends it by SystemExit.
    probe = (
        "import atexit, sys; from jobs.cli import main; "
        f"atexit.register(lambda: print('LOADED', [name for name in {heavy} if name in sys.modules])); "
        f"main({args})"
    )
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "LOADED []"


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb}" in shown for verb in VERBS)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["frobnicate"], "unknown verb 'frobnicate'; known are demo, synth"),
        (["synth", "--output", "x", "--synth.clipz", "3"], "--synth.clipz"),
        (["synth"], "--output"),
        (["synth", "--output", "x", "--synth.clips", "many"], "--synth.clips"),
        (["curate", "--input", "/nowhere/at/all", "--output", "OUT"], "/nowhere/at/all"),
        (["curate", "--input", "EMPTY", "--output", "OUT"], "EMPTY"),
        (["curate", "--output", "OUT"], "--rejudge"),
        (["curate", "--rejudge", "/nowhere", "--output", "OUT"], "/nowhere"),
        (["calibrate", "--labels", "/no.tsv", "--input", "EMPTY", "--output", "OUT"], "/no.tsv"),
        (["synth", "--recipe", "tinny", "--output", "x"], "tinny"),
        (["train", "dit", "--output", "OUT", "--train.index", "/nowhere"], "/nowhere"),
        (["generate", "--checkpoint", "/nowhere", "--prompts", "/none.txt", "--output", "OUT"], "/none.txt"),
        (["export", "--checkpoint", "/nowhere", "--layout", "ltx", "--output", "x.safetensors"], "/nowhere"),
        (["export", "--checkpoint", "EMPTY", "--layout", "diffusers", "--output", "OUT"], "EMPTY"),
        (["export", "--checkpoint", "EMPTY", "--layout", "onnx", "--output", "OUT"], "layout"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(args, said, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    args = [str(tmp_path / arg) if arg in ("OUT", "EMPTY") else arg for arg in args]
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kinotone: ")
    assert said in lines[0]


def test_command_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "jobs.cli", "bogus"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
