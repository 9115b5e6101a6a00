"""Engine `vllm` with vLLM, on CPU or GPU: a model class with random weights, whose answers follow the schema."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from captioning.settings import CaptionSettings, SeenSettings
from data_prep.dataset.index import read_manifest
from pipelines.dataflow.prepare import run_prepare
from tests.pipelines.dataflow.caption_set import write_caption_set
from tests.tiny_vision import write_gemma_vision

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # each round of questions loads an engine: minutes on busy cores
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed here; docs/captions.md says how an environment with it is made",
    ),
]


def _captioned(tmp_path: Path, *, untrained: bool, max_model_len: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of captioning two segments with tiny Gemma 3, and the rows of their four kept clips."""
    source = write_caption_set(tmp_path / "set", 2)
    model = str(write_gemma_vision(tmp_path / "gemma", untrained=untrained))
    options = {"enforce_eager": True, "max_model_len": max_model_len, "kv_cache_memory_bytes": 64 << 20}
    seen = SeenSettings(engine="vllm", model=model, max_tokens=32, engine_options=options)
    summary = run_prepare(("caption",), [source], tmp_path / "out", {"caption": CaptionSettings(seen=seen)})
    rows = read_manifest(tmp_path / "out").sort_by("clip_id").to_pylist()
    return summary, [row for row in rows if row["verdict"] != "dropped"]


def test_random_weights_are_held_to_the_schema_and_never_told(ray_session: None, tmp_path: Path) -> None:
    summary, rows = _captioned(tmp_path, untrained=True, max_model_len=8192)
    assert (summary["kept"], summary["failed"]) == (4, {})
    for row in rows:
        caption = json.loads(row["caption"])
        assert caption["seen"]["untrained"] is True
        assert caption["seen"]["answer"].startswith('{"setting": "')
        assert not [one for one in caption["evidence"] if one["source"] in ("seen", "written")]


def test_what_vllm_refuses_is_the_clips_verdict(ray_session: None, tmp_path: Path) -> None:
    """A question that is longer than the model's context is asked twice, and none of its rows is lost."""
    summary, rows = _captioned(tmp_path, untrained=False, max_model_len=256)
    assert (summary["kept"], summary["failed"]) == (0, {"caption": 4})
    assert all("look: no answer: " in row["error"] for row in rows)
