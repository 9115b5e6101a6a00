"""The three engines in the graph of `kinotone caption`: every clip ends with a caption or exactly one verdict."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from captioning.look.vision_engine import EngineGone
from captioning.settings import CaptionSettings, SeenSettings
from data_prep.clip import Segment
from data_prep.dataset.index import read_manifest
from data_prep.dataset.ledger import Ledger
from pipelines.dataflow import prepare, vllm_stage
from pipelines.dataflow.graph import apply
from pipelines.dataflow.prepare import run_prepare
from tests.chat_server import MODEL, NAMES, Chat, chat_server
from tests.pipelines.dataflow.caption_set import write_caption_set
from tests.pipelines.killing import ROOT, counts, digests, end_family
from tests.tiny_vision import write_gemma_vision, write_qwen_omni

# Requests fail with each kind of temporary fault in turn, or succeed.
PASSING = ["", "429", "slow", "", "500", "dropped", "", "503"]


def _settings(chat: Chat, **more: Any) -> dict[str, CaptionSettings]:
    seen = {"engine": "openai", "model": MODEL, "endpoint": chat.endpoint, "time_limit_s": 5.0, **more}
    return {"caption": CaptionSettings(seen=SeenSettings(**seen))}


def _rows(output: Path) -> list[dict]:
    return read_manifest(output).sort_by("clip_id").to_pylist()


def _colour(number: int) -> str:
    return list(NAMES)[number % len(NAMES)]


def test_every_clip_ends_in_a_caption_or_one_verdict(ray_session: None, tmp_path: Path) -> None:
    source = write_caption_set(tmp_path / "set", 6)
    with chat_server(faults=PASSING, colours={"red": "malformed", "blue": "refusal"}) as chat:
        summary = run_prepare(("caption",), [source], tmp_path / "out", _settings(chat))
        met = chat.met()
    assert {fault for fault in PASSING if fault} <= met.keys()
    assert (summary["considered"], summary["kept"], summary["dropped"]) == (18, 6, {"silence": 6})
    assert summary["failed"] == {"caption": 6}
    kept = [row for row in _rows(tmp_path / "out") if row["verdict"] != "dropped"]
    for number, row in enumerate(kept):
        colour = _colour(number)
        if colour in ("red", "blue"):
            assert (row["verdict"], row["reason"]) == ("failed", "caption")
            assert {"red": "malformed", "blue": "refusal"}[colour] in row["error"]
            assert row["caption"] in ("{}", {})
        else:
            caption = json.loads(row["caption"])
            assert caption["text"].startswith(f"The setting is a {colour} room. A woman can be seen: a long coat.")
            assert caption["text"].endswith("Music is heard throughout.")
    page = (tmp_path / "out" / "report" / "captions.html").read_text()
    assert 'class="line"><small class="soft">frames</small>' in page
    assert "A woman opens a door." in page


def test_a_missing_endpoint_is_refused_before_anything_starts(tmp_path: Path) -> None:
    source = write_caption_set(tmp_path / "set", 1)
    with chat_server() as chat:
        pass
    with pytest.raises(ValueError, match=r"^caption\.seen\.endpoint http://.*no server answers"):
        run_prepare(("caption",), [source], tmp_path / "out", _settings(chat))
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_gone_costs_no_clip_its_caption() -> None:
    def gone(segments: list[Segment]) -> list[Segment]:
        raise EngineGone("no server answers there")

    with pytest.raises(EngineGone):
        apply("caption", gone, [Segment("a", "memory"), Segment("b", "memory")])


@pytest.mark.slow
def test_random_weights_go_through_the_graph_and_are_never_told(ray_session: None, tmp_path: Path) -> None:
    source, model = write_caption_set(tmp_path / "set", 2), str(write_gemma_vision(tmp_path / "gemma"))
    seen = SeenSettings(engine="transformers", model=model, max_tokens=16, dtype="float32")
    summary = run_prepare(("caption",), [source], tmp_path / "out", {"caption": CaptionSettings(seen=seen)})
    assert (summary["kept"], summary["failed"]) == (4, {})
    for row in _rows(tmp_path / "out"):
        if row["verdict"] == "kept":
            caption = json.loads(row["caption"])
            assert caption["seen"]["untrained"] is True
            assert caption["seen"]["answer"]
            assert not [one for one in caption["evidence"] if one["source"] in ("seen", "written")]


@pytest.mark.slow
def test_the_llm_processor_stands_between_two_stages(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check vLLM's configuration, and run Ray Data's processor with its HTTP stage in place of vLLM."""
    source = write_caption_set(tmp_path / "set", 4)
    model = str(write_gemma_vision(tmp_path / "gemma", untrained=False))

    def over_http(seen: SeenSettings) -> Any:
        from ray.data.llm import HttpRequestProcessorConfig, build_processor

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            asked = vllm_stage._to_vllm(row, seen)
            sampling = asked.pop("sampling_params")
            assert json.loads(sampling["structured_outputs"]["json"])["type"] == "object"
            closed = {"type": "json_schema", "json_schema": {"schema": {"additionalProperties": False}}}
            return {**asked, "payload": {"messages": asked["messages"], "response_format": closed}}

        def postprocess(row: dict[str, Any]) -> dict[str, Any]:
            answer = row["http_response"]["choices"][0]["message"]["content"]
            return vllm_stage._from_vllm({**row, "generated_text": answer})

        config = HttpRequestProcessorConfig(
            url=f"{chat.endpoint}/chat/completions", batch_size=4, qps=50, max_retries=4, base_retry_wait_time_in_s=0.1
        )
        return build_processor(config, preprocess=preprocess, postprocess=postprocess)

    monkeypatch.setattr(vllm_stage, "processor", over_http)
    monkeypatch.setattr(prepare, "_check_available", lambda chosen: None)  # vLLM is not installed where the tests run
    with chat_server(colours={"red": "malformed"}) as chat:
        settings = {"caption": CaptionSettings(seen=SeenSettings(engine="vllm", model=model, compose="engine"))}
        summary = run_prepare(("caption",), [source], tmp_path / "out", settings)
        assert chat.met() == {"malformed": 4, "": 12}
    assert (summary["kept"], summary["failed"]) == (6, {"caption": 2})
    with chat_server(colours={"red": "malformed"}) as chat:
        run_prepare(("caption",), [source], tmp_path / "other", _settings(chat, compose="engine"))
    texts = [
        [(row["verdict"], json.loads(row["caption"] or "{}").get("text")) for row in _rows(tmp_path / name)]
        for name in ("out", "other")
    ]
    assert texts[0] == texts[1]


def test_the_configuration_of_vllm() -> None:
    pytest.importorskip("ray.data.llm")
    seen = SeenSettings(
        engine="vllm", model="google/gemma-3-4b-it", frames=6, engine_options={"tensor_parallel_size": 2}, workers=3
    )
    config = vllm_stage.engine_config(seen)
    assert config.model_source == "google/gemma-3-4b-it"
    assert config.engine_kwargs["limit_mm_per_prompt"] == {"image": 6}
    assert config.engine_kwargs["tensor_parallel_size"] == 2
    assert config.concurrency == 3
    assert config.should_continue_on_error
    assert config.placement_group_config is None
    config = vllm_stage.engine_config(seen, gpus=False)
    assert config.placement_group_config["bundle_per_worker"] == {"CPU": 0.5, "GPU": 0.0}


def test_a_prompt_of_vllm_begins_once(tmp_path: Path) -> None:
    """vLLM adds special tokens to the text of a template."""
    gemma = str(write_gemma_vision(tmp_path / "gemma"))
    processor = AutoProcessor.from_pretrained(gemma)
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]

    def begins(template: str | None) -> int:
        text = processor.apply_chat_template(chat, tokenize=False, chat_template=template)
        return processor.tokenizer(text).input_ids.count(processor.tokenizer.bos_token_id)

    assert begins(None) == 2
    assert begins(vllm_stage.template_without_bos(gemma)) == 1
    assert vllm_stage.template_without_bos(str(write_qwen_omni(tmp_path / "qwen"))) is None


_RUN = """
import sys
from captioning.settings import CaptionSettings
from pipelines.dataflow.prepare import run_prepare
settings = {"caption": CaptionSettings.model_validate_json(sys.argv[3])}
run_prepare(("caption",), [sys.argv[1]], sys.argv[2], settings)
"""


def _start(source: str, output: Path, settings: dict[str, CaptionSettings]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, source, str(output), settings["caption"].model_dump_json()],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _completed(source: str, output: Path, settings: dict[str, CaptionSettings]) -> None:
    process = _start(source, output, settings)
    printed = process.communicate(timeout=300)
    end_family(process.pid)
    assert process.returncode == 0, printed


@pytest.mark.slow
def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    """Kill the driver while answers arrive and some fail; the resumed run asks only about uncommitted segments."""
    segments = 12
    source = write_caption_set(tmp_path / "set", segments)
    with chat_server(faults=PASSING, colours={"blue": "language"}) as chat:
        settings = _settings(chat, compose="engine", concurrency=1)
        _completed(source, tmp_path / "whole", settings)
        output = tmp_path / "killed"
        process = _start(source, output, settings)
        deadline = time.monotonic() + 200
        while len(Ledger(output).done()) < segments // 3:
            assert process.poll() is None, "the run was over before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        end_family(process.pid)
        at = len(Ledger(output).done())
        assert segments // 3 <= at < segments
        _completed(source, output, settings)
    assert digests(output) == digests(tmp_path / "whole")
    assert counts(output) == counts(tmp_path / "whole")
    assert counts(output)["failed"] == {"caption": 6}
