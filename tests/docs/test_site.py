"""The documentation site builds from docs/ and the docstrings, without a broken link and without the network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ci
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = list(tmp_path.rglob("*.html"))
    assert tmp_path / "reference" / "model.html" in pages
    fetched = ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http')
    assert not [page.name for page in pages if any(text in page.read_text(encoding="utf-8") for text in fetched)]
