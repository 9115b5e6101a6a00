"""Engine `vllm`: what is seen, asked of vLLM through Ray Data's LLM processor, between two stages of the graph.

The row stays a segment. Its clips wait in it for their answers; of them requests are made, which alone go through the
processor, one to a clip that is asked, and the answers come back to the rows by segment and place. That takes the rows
of a wave to be held between the halves, in Ray's object store (which spills to disk): a wave is small, and an engine is
loaded once for each of its rounds. Rounds are two as a rule (what is seen; and where the engine composes, the caption),
and one more for what is refused.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from captioning.captioner import AnswerHandler, Measurer, each_kept
from captioning.look.endpoint import messages
from captioning.look.prompt import Prompt
from captioning.look.schema import wire_schema
from captioning.look.vision_engine import NoAnswer, is_untrained
from captioning.request import CaptionRequest
from captioning.settings import CaptionSettings, SeenSettings
from data_prep.clip import Clip, Segment, from_table
from pipelines.dataflow.graph import Stage, apply, to_rows

_REQUESTS = pa.schema([("segment_id", pa.string()), ("at", pa.int32()), ("request", pa.string())])
# What each of the four stages beside the engine holds; by default a CPU each, more than a small machine has.
_BESIDE = {"num_cpus": 0.05}
# Where a chat template writes the token itself; the braces stay, for they may trim the blanks around them.
_BOS = re.compile(r"(\{\{-?\s*)bos_token(\s*-?\}\})")
# (segment, place of the clip in it) → what the engine answered
Replies = dict[tuple[str, int], str | NoAnswer]


def caption_stages(settings: CaptionSettings) -> list[Stage]:
    """The caption stage as two: measure, then after the engine has answered the clips, pass them on or commit them."""
    first = Stage("caption", partial(_Waiting, settings), gpu=True, then=partial(ask, settings=settings))
    return [first, Stage("caption", _Answered)]


class _Waiting:
    """Segments → the same, with what is measured of each kept clip waiting in it for an engine's answer."""

    def __init__(self, settings: CaptionSettings) -> None:
        self._measurer = Measurer(settings)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        return each_kept(
            segments,
            lambda clips: [
                one.to_clip() if isinstance(one, CaptionRequest) else one for one in self._measurer.measure(clips)
            ],
        )


class _Answered:
    """Segments of which no clip waits any more."""

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        assert not any(CaptionRequest.of_clip(clip) for segment in segments for clip in segment.clips)
        return segments


def ask(data: Any, settings: CaptionSettings) -> Any:
    """A Ray dataset of waiting rows → the same with captions and verdicts. Runs what comes before it."""
    data = data.materialize()
    while True:
        asked = data.map_batches(_requests, fn_kwargs={"settings": settings}, batch_format="pyarrow").materialize()
        if not asked.count():
            return data
        replies: Replies = {}
        for row in processor(settings.seen)(asked).iter_rows():
            error = row.get("__inference_error__")  # of such a row Ray Data calls no postprocess
            replies[row["segment_id"], row["at"]] = NoAnswer(error) if error else row["answer"]
        data = data.map_batches(
            _Taking,
            fn_constructor_kwargs={"settings": settings, "replies": replies},
            batch_format="pyarrow",
            concurrency=settings.seen.workers,
        ).materialize()


def _requests(table: pa.Table, settings: CaptionSettings) -> pa.Table:
    """What is to be asked of the clips in rows, as `_REQUESTS`."""
    segments = from_table(table.drop_columns(["seconds"]))
    rows = [
        {"segment_id": segment.segment_id, "at": at, "request": json.dumps(_plain(item.next_prompt(settings)))}
        for segment, at, item in _waiting(segments)
    ]
    return pa.Table.from_pylist(rows, _REQUESTS)


def _plain(prompt: Prompt) -> dict[str, Any]:
    return {"messages": messages(prompt), "schema": wire_schema(prompt.answer)}


def _waiting(segments: list[Segment]) -> Iterator[tuple[Segment, int, CaptionRequest]]:
    """Every clip that waits: its segment, its place in it, and what is known of it."""
    for segment in segments:
        for at, clip in enumerate(segment.clips):
            item = CaptionRequest.of_clip(clip) if clip.kept else None
            if item is not None:
                yield segment, at, item


class _Taking:
    """Rows and the answers to their clips → rows that are captioned, failed or wait for their next answer."""

    def __init__(self, settings: CaptionSettings, replies: Replies) -> None:
        self._answers, self._replies = AnswerHandler(settings), replies
        self._untrained = is_untrained(settings.seen.model)

    def __call__(self, table: pa.Table) -> pa.Table:
        seconds = [dict(row) for row in table["seconds"].to_pylist()]
        segments = from_table(table.drop_columns(["seconds"]))
        return to_rows(apply("caption", self._take, segments), seconds)

    def _take(self, segments: list[Segment]) -> list[Segment]:
        for segment, at, item in _waiting(segments):
            reply = self._replies.get((segment.segment_id, at), NoAnswer("the engine gave no row"))
            done = self._answers.handle(item, reply, untrained=self._untrained)
            segment.clips[at] = done if isinstance(done, Clip) else done.to_clip()
        return segments


def processor(settings: SeenSettings) -> Any:
    """Ray Data's LLM processor on vLLM for requests: a dataset of `_REQUESTS` → segment_id, at, answer.

    A row of which vLLM made nothing has `__inference_error__` and no answer.
    """
    import ray
    from ray.data.llm import build_processor

    return build_processor(
        engine_config(
            settings,
            gpus=ray.cluster_resources().get("GPU", 0) >= 1,
            chat_template=template_without_bos(settings.model),
        ),
        preprocess=partial(_asked, settings=settings),
        postprocess=_replied,
        preprocess_map_kwargs=_BESIDE,
        postprocess_map_kwargs=_BESIDE,
    )


def template_without_bos(model: str) -> str | None:
    """The model's chat template without the BOS that its tokenizer adds too; None where it has none to leave out.

    The template's text reaches vLLM as any text does, and is given its special tokens there.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    tokenizer, template = getattr(processor, "tokenizer", processor), processor.chat_template
    adds = tokenizer.bos_token_id in tokenizer("").input_ids
    without = _BOS.sub(r"\1''\2", template or "", count=1)
    return without if adds and without != template else None


def engine_config(settings: SeenSettings, *, gpus: bool = True, chat_template: str | None = None) -> Any:
    """The configuration of vLLM: greedy, with answers held to the schema, pictures taken out of the messages.

    Args:
        gpus: whether the cluster has any; without, vLLM's CPU build runs, and Ray must not wait for a GPU.
        chat_template: in place of the model's own.
    """
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs={
            "dtype": settings.dtype,
            "limit_mm_per_prompt": {"image": settings.frames},
            "seed": 0,
            # JSON without blanks: a schema bounds no white space, of which a model can write to its last token.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            **settings.engine_options,
        },
        placement_group_config=None if gpus else {"bundle_per_worker": {"CPU": 0.5}},
        concurrency=settings.workers,
        batch_size=16,
        should_continue_on_error=True,
        log_engine_metrics=False,
        # Content as parts: the models' own templates put a picture's marker where it stands.
        prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai", **_BESIDE},
        chat_template_stage={"chat_template": chat_template, **_BESIDE},
        # vLLM does both itself; as stages each is one more process with all that vLLM imports.
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _asked(row: dict[str, Any], settings: SeenSettings) -> dict[str, Any]:
    request = json.loads(row["request"])
    sampling = {
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": settings.max_tokens,
        "structured_outputs": {"json": json.dumps(request["schema"])},
    }
    place = {"segment_id": row["segment_id"], "at": row["at"]}
    return {**place, "messages": request["messages"], "sampling_params": sampling}


def _replied(row: dict[str, Any]) -> dict[str, Any]:
    return {"segment_id": row["segment_id"], "at": row["at"], "answer": row["generated_text"]}
