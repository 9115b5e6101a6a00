"""The doctor: each check passes on this machine, and a failed one names its fix."""

import pytest
from rich.console import Console

from jobs import doctor


def test_this_machine_has_what_a_run_needs(capsys):
    doctor.report(Console(width=200))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Python", "packages", "g++", "demo weights", "GPU", "memory", "disk"))


def test_what_is_missing_is_named_with_its_fix(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"g\+\+.*apt-get install"):
        doctor.report(Console(width=200))
    assert "missing" in capsys.readouterr().out


def test_missing_demo_weights_stop_nobody(monkeypatch, capsys):
    def absent(name):
        raise ValueError(f"weights package {name} is not installed")

    monkeypatch.setattr(doctor.packaged_weights, "resolve", absent)
    doctor.report(Console(width=200))
    assert "without" in capsys.readouterr().out
