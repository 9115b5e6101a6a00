"""Run the engines in the caption stage: real model classes with random weights, and a real server that fails."""

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from captioning.captioner import Captioner, check_settings
from captioning.look import prompt
from captioning.look.clip_scores import ClipScores
from captioning.look.endpoint import Endpoint
from captioning.look.frames import to_jpeg
from captioning.look.transformers_engine import TransformersEngine
from captioning.look.vision_engine import EngineGone, NoAnswer
from captioning.request import CaptionRequest
from captioning.settings import CaptionSettings, SeenSettings
from data_prep.clip import Clip, Segment
from tests.captioning.sounds import chord, clip_of
from tests.chat_server import MODEL, NAMES, Chat, chat_server
from tests.tiny_vision import write_gemma_vision, write_qwen_omni

PICTURE = to_jpeg(np.full((64, 96, 3), NAMES["red"], np.uint8))


def _settings(chat: Chat, **more) -> SeenSettings:
    return SeenSettings(engine="openai", model=MODEL, endpoint=chat.endpoint, **{"time_limit_s": 3.0, **more})


def _look(count: int = 1, **more) -> list[prompt.Prompt]:
    return [prompt.look([PICTURE], [0.0], "", None, **more)] * count


def _captioned(settings: SeenSettings, *clips: Clip) -> list[Clip]:
    captioner = Captioner(CaptionSettings(seen=settings))
    return captioner([Segment("segment", "clip.mp4", clips=list(clips))])[0].clips


def _clip(colour: str = "red") -> Clip:
    return clip_of(chord(1), clip_id=colour, colour=NAMES[colour])


def test_a_clip_is_captioned_by_a_server_with_the_times_of_its_evidence() -> None:
    with chat_server() as chat:
        (done,) = _captioned(_settings(chat), _clip())
    assert done.kept, done.error
    assert done.caption["text"].startswith(
        "The setting is a red room. A woman can be seen: a long coat. A woman opens a door."
    )
    evidence = {one["sentence"]: one for one in done.caption["evidence"]}
    (time_s,) = done.caption["seen"]["times"]
    assert evidence["A woman opens a door."]["facts"] == {"spans": [[round(time_s, 2)] * 2]}
    assert done.caption["seen"]["model"] == MODEL
    assert done.caption["short"].startswith("The setting is a red room. A woman opens a door.")


@pytest.mark.parametrize("fault", ["429", "500", "503", "dropped", "slow"])
def test_a_server_that_fails_is_asked_again(fault: str) -> None:
    with chat_server(faults=[fault, fault, ""]) as chat:
        answers = Endpoint(_settings(chat)).ask(_look(3))
        met = chat.met()
    assert all(isinstance(answer, str) for answer in answers)
    assert met[fault] >= 2


def test_retry_after_is_waited_for() -> None:
    with chat_server(faults=["429", ""]) as chat:
        began = time.monotonic()
        Endpoint(_settings(chat)).ask(_look())
        assert time.monotonic() - began >= 0.2


def test_requests_are_paced() -> None:
    with chat_server() as chat:
        began = time.monotonic()
        Endpoint(_settings(chat, requests_per_minute=300)).ask(_look(4))
        assert time.monotonic() - began >= 3 * 0.2


@pytest.mark.parametrize("fault", ["hangs", "drips"])
def test_a_server_that_hangs_gives_no_answer(fault: str) -> None:
    with chat_server(faults=[fault]) as chat:
        (answer,) = Endpoint(_settings(chat, time_limit_s=0.5)).ask(_look())
    assert isinstance(answer, NoAnswer)
    assert "within 0.5 s" in str(answer)


def test_a_server_that_only_fails_gives_no_answer_and_one_that_is_gone_ends_the_run() -> None:
    with chat_server(faults=["500"]) as chat:
        engine = Endpoint(_settings(chat, attempts=2))
        (answer,) = engine.ask(_look())
    assert str(answer) == "after 2 attempts: status 500"
    with pytest.raises(EngineGone, match=r"no server answers there"):
        engine.ask(_look())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("malformed", "malformed"),
        ("empty", "empty"),
        ("refusal", "refusal"),
        ("long", "too long"),
        ("language", "language"),
        ("task", "malformed: setting: Field required"),
        ("extra", "malformed: note"),
        ("hangs", "no answer: no answer within 1 s"),
    ],
)
def test_a_bad_answer_is_asked_for_once_more_and_is_then_the_verdict(fault: str, reason: str) -> None:
    with chat_server(colours={"red": fault}) as chat:
        red, green = _captioned(_settings(chat, time_limit_s=1.0), _clip("red"), _clip("green"))
        assert chat.met() == {fault: 2, "": 1}
    assert (red.verdict, red.reason) == ("failed", "caption")
    assert red.error.startswith(f"look: {reason}")
    assert not red.caption
    assert green.kept
    with chat_server(faults=[fault, ""]) as chat:
        (once,) = _captioned(_settings(chat, time_limit_s=1.0), _clip("red"))
    assert once.kept
    assert once.caption["text"].startswith("The setting is a red room.")


def test_the_engine_composes_and_is_held_to_the_facts() -> None:
    with chat_server() as chat:
        (done,) = _captioned(_settings(chat, compose="engine"), _clip())
        assert chat.met() == {"": 2}
    assert done.kept, done.error
    assert "The setting is a red room. A woman can be seen: a long coat." in done.caption["text"]
    assert {one["source"] for one in done.caption["evidence"]} == {"written"}
    seen = [one for one in done.caption["evidence"] if "room" in one["sentence"] or "woman" in one["sentence"]]
    assert len(seen) == 3
    assert all(one["facts"]["spans"] for one in seen)
    assert not done.caption["removed"]


def test_what_an_engine_invents_is_asked_for_once_more_and_then_taken_out() -> None:
    with chat_server(obey="a long coat") as chat:
        (done,) = _captioned(_settings(chat, compose="engine"), _clip())
        assert chat.met() == {"": 3}
    assert done.kept, done.error
    assert {one["text"] for one in done.caption["removed"]} == {
        "The camera pans right.",
        "The sound of a dog barking is heard.",
        "It is a happy day.",
    }
    assert "dog" not in done.caption["long"]
    assert "happy" not in done.caption["long"]


def test_what_is_missing_is_refused_naming_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read only once, at import
    with chat_server() as chat:
        check_settings(CaptionSettings(seen=_settings(chat)))
        with pytest.raises(ValueError, match=rf"^caption\.seen\.model 'other'.*{MODEL}"):
            check_settings(CaptionSettings(seen=_settings(chat).model_copy(update={"model": "other"})))
        gone = _settings(chat)
    bad = [
        (gone, r"caption\.seen\.endpoint .*no server answers"),
        (gone.model_copy(update={"engine": "transformers", "model": str(tmp_path)}), r"caption\.seen\.model"),
        (gone.model_copy(update={"engine": "transformers", "model": "nobody/nothing"}), r"caption\.seen\.model"),
        (gone.model_copy(update={"engine": "vllm"}), r"caption\.seen\.engine: vllm is not installed"),
        (
            gone.model_copy(update={"clip": "ViT-B-32", "clip_weights": "no.safetensors"}),
            r"caption\.seen\.clip_weights",
        ),
    ]
    for settings, message in bad:
        with pytest.raises(ValueError, match=f"^{message}"):
            check_settings(CaptionSettings(seen=settings))
    for wrong in ({"engine": "openai", "model": "m"}, {"engine": "vllm"}, {"compose": "engine"}):
        with pytest.raises(ValueError, match=r"endpoint|model|engine"):
            SeenSettings.model_validate(wrong)


@pytest.mark.parametrize("write", [write_gemma_vision, write_qwen_omni])
def test_random_weights_of_the_real_class_are_marked_and_never_told(write, tmp_path: Path) -> None:
    settings = SeenSettings(engine="transformers", model=str(write(tmp_path)), max_tokens=24, dtype="float32")
    check_settings(CaptionSettings(seen=settings))
    (done,) = _captioned(settings, _clip())
    assert done.kept, done.error
    assert done.caption["seen"]["untrained"] is True
    assert len(done.caption["seen"]["answer"]) > 3
    assert done.caption["seen"]["answer"] not in done.caption["long"]
    assert {one["source"] for one in done.caption["evidence"]} <= {"picture", "sound", "tags"}
    (again,) = _captioned(settings, _clip())
    assert again == done


def test_a_prompt_begins_once(tmp_path: Path) -> None:
    """Gemma's chat template and its tokenizer both add a BOS token."""
    model = str(write_gemma_vision(tmp_path))
    engine = TransformersEngine(SeenSettings(engine="transformers", model=model, dtype="float32"))
    bos = engine._processor.tokenizer.bos_token_id
    assert engine._processor.tokenizer("a").input_ids[0] == bos
    tokens = engine._inputs(prompt.look([PICTURE], [0.0], "", None)).input_ids[0].tolist()
    assert tokens[0] == bos
    assert tokens.count(bos) == 1


def test_an_omni_model_hears_and_text_that_is_no_answer_is_a_verdict(tmp_path: Path) -> None:
    model = str(write_qwen_omni(tmp_path, untrained=False))
    engine = TransformersEngine(SeenSettings(engine="transformers", model=model, max_tokens=24, dtype="float32"))
    assert engine.hears
    assert not engine.untrained
    sound = np.random.default_rng(0).normal(0, 0.3, 16000).astype(np.float32)
    silent, heard = (engine._inputs(prompt.look([PICTURE], [0.0], "", one)) for one in (0 * sound, sound))
    with torch.inference_mode():
        one, other = (engine._model(**inputs).logits[0, -1] for inputs in (silent, heard))
    assert (one - other).abs().max() > 1e-4
    (done,) = _captioned(engine._settings, _clip())
    assert (done.verdict, done.reason) == ("failed", "caption")
    assert "malformed" in done.error


def test_a_model_that_is_slow_gives_no_answer(tmp_path: Path) -> None:
    model = str(write_gemma_vision(tmp_path))
    settings = SeenSettings(engine="transformers", model=model, time_limit_s=1e-3, dtype="float32")
    (answer,) = TransformersEngine(settings).ask(_look())
    assert isinstance(answer, NoAnswer)


def test_a_waiting_clip_survives_its_row() -> None:
    with chat_server() as chat:
        captioner = Captioner(CaptionSettings(seen=_settings(chat)))
        (item,) = captioner.measurer.measure([_clip()])
    assert isinstance(item, CaptionRequest)
    back = CaptionRequest.of_clip(item.to_clip())
    assert back is not None
    assert back.to_clip() == item.to_clip()
    settings = captioner.settings
    assert back.next_prompt(settings).pictures == item.next_prompt(settings).pictures
    assert base64.b64encode(item.frames[0].jpeg).decode() in str(item.to_clip().caption)
    assert CaptionRequest.of_clip(_clip()) is None


def test_open_clip_scores_phrases_and_random_weights_remove_nothing(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-scores.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    for name, metadata in (("trained", None), ("untrained", {"untrained": "true"})):
        save_file(open_clip.create_model("tiny-scores").state_dict(), tmp_path / f"{name}.safetensors", metadata)
        settings = SeenSettings(
            engine="transformers", model="m", clip="tiny-scores", clip_weights=str(tmp_path / f"{name}.safetensors")
        )
        scorer = ClipScores(settings)
        assert scorer.untrained == (name == "untrained")
        pictures = [PICTURE, to_jpeg(np.full((64, 96, 3), NAMES["blue"], np.uint8))]
        both, first, second = scorer.scores(pictures, ["a woman"] * 3, [(1, 2), (1,), (2,)])
        assert both == pytest.approx(max(first, second))
        assert first != second
    with chat_server() as chat:
        strict = _settings(chat, clip="tiny-scores", clip_weights=str(tmp_path / "untrained.safetensors"))
        (done,) = _captioned(strict.model_copy(update={"min_clip_score": 1.0}), _clip())
        assert "a woman" in done.caption["text"].lower()
        trained = strict.model_copy(
            update={"min_clip_score": 1.0, "clip_weights": str(tmp_path / "trained.safetensors")}
        )
        (done,) = _captioned(trained, _clip())
    assert "woman" not in done.caption["long"]
    assert {one["reasons"][0].split(":")[0] for one in done.caption["removed"]} == {"picture"}
    assert all(one["score"] is not None for one in done.caption["seen"]["removed"])
