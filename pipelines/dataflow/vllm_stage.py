"""Caption engine `vllm`: requests of clips go through Ray Data's vLLM processor, between two stages of the graph.

    StageWorker(_MeasureStage)   measures each kept clip and stores a `CaptionRequest` in it
         │
    ask                          repeats until no clip waits:
                                   make one request per waiting clip → vLLM → put the answers into the clips
         │
    StageWorker(_AnsweredStage)  passes the captioned segments on, or commits them

The row stays a segment; only the requests, one per waiting clip, go through the processor. Answers find their clip by
segment id and position. So all rows of a wave must wait in Ray's object store, which spills to disk. That is why a wave
is small. The engine is loaded once per round. There are usually two rounds (what is seen, then the caption if the
engine composes it), and one more for answers that are refused.
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

# A row of the dataset that goes to vLLM: the key of a clip, and its request as JSON (`_to_dict`).
_REQUESTS = pa.schema([("segment_id", pa.string()), ("at", pa.int32()), ("request", pa.string())])
# CPUs of each of the four stages around the engine. The default of one CPU each is more than a small machine has.
_HELPER_RESOURCES = {"num_cpus": 0.05}
# Where a chat template writes the BOS token. The braces are kept, because they may trim the blanks around them.
_BOS = re.compile(r"(\{\{-?\s*)bos_token(\s*-?\}\})")
# (segment id, position of the clip in the segment) → the engine's answer
Replies = dict[tuple[str, int], str | NoAnswer]


def caption_stages(settings: CaptionSettings) -> list[Stage]:
    """Return the caption stage as two stages of the graph, with the requests to vLLM (`ask`) between them."""
    measure = Stage("caption", partial(_MeasureStage, settings), gpu=True, then=partial(ask, settings=settings))
    return [measure, Stage("caption", _AnsweredStage)]


class _MeasureStage:
    """The stage before vLLM: it measures each kept clip and stores a `CaptionRequest` in it, to be answered."""

    def __init__(self, settings: CaptionSettings) -> None:
        self._measurer = Measurer(settings)

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        return each_kept(
            segments,
            lambda clips: [
                one.to_clip() if isinstance(one, CaptionRequest) else one for one in self._measurer.measure(clips)
            ],
        )


class _AnsweredStage:
    """The stage after vLLM: it checks that no clip waits for an answer, and returns the segments unchanged."""

    def __call__(self, segments: list[Segment]) -> list[Segment]:
        assert not any(CaptionRequest.of_clip(clip) for segment in segments for clip in segment.clips)
        return segments


def ask(data: Any, settings: CaptionSettings) -> Any:
    """Ask vLLM until no clip waits for an answer.

    Args:
        data: a Ray dataset of `pipelines.dataflow.graph.ROW_SCHEMA`. It is materialized here, so the stage before this
            call runs to its end first.
        settings: the caption settings.

    Returns:
        The dataset with captions and verdicts in its clips.
    """
    data = data.materialize()
    while True:
        asked = data.map_batches(_requests, fn_kwargs={"settings": settings}, batch_format="pyarrow").materialize()
        if not asked.count():
            return data
        replies: Replies = {}
        for row in processor(settings.seen)(asked).iter_rows():
            error = row.get("__inference_error__")  # Ray Data skips `postprocess` for such a row
            replies[row["segment_id"], row["at"]] = NoAnswer(error) if error else row["answer"]
        data = data.map_batches(
            _PutAnswers,
            fn_constructor_kwargs={"settings": settings, "replies": replies},
            batch_format="pyarrow",
            concurrency=settings.seen.workers,
        ).materialize()


def _requests(table: pa.Table, settings: CaptionSettings) -> pa.Table:
    """Return the next request of each waiting clip of `table` (rows of `ROW_SCHEMA`), as rows of `_REQUESTS`."""
    segments = from_table(table.drop_columns(["seconds"]))
    rows = [
        {"segment_id": segment.segment_id, "at": at, "request": json.dumps(_to_dict(item.next_prompt(settings)))}
        for segment, at, item in _waiting_clips(segments)
    ]
    return pa.Table.from_pylist(rows, _REQUESTS)


def _to_dict(prompt: Prompt) -> dict[str, Any]:
    """Return the chat messages of a prompt, and the JSON schema of its answer."""
    return {"messages": messages(prompt), "schema": wire_schema(prompt.answer)}


def _waiting_clips(segments: list[Segment]) -> Iterator[tuple[Segment, int, CaptionRequest]]:
    """Yield (segment, position of the clip in it, request) for every clip that waits for an answer."""
    for segment in segments:
        for at, clip in enumerate(segment.clips):
            item = CaptionRequest.of_clip(clip) if clip.kept else None
            if item is not None:
                yield segment, at, item


class _PutAnswers:
    """A callable on rows of `ROW_SCHEMA`: it gives each waiting clip its answer.

    The clip is then captioned or failed, or waits for the answer to a further request.
    """

    def __init__(self, settings: CaptionSettings, replies: Replies) -> None:
        self._answers, self._replies = AnswerHandler(settings), replies
        self._untrained = is_untrained(settings.seen.model)

    def __call__(self, table: pa.Table) -> pa.Table:
        seconds = [dict(row) for row in table["seconds"].to_pylist()]
        segments = from_table(table.drop_columns(["seconds"]))
        return to_rows(apply("caption", self._put, segments), seconds)

    def _put(self, segments: list[Segment]) -> list[Segment]:
        """Replace each waiting clip by its captioned, failed or again waiting form. Return the same segments."""
        for segment, at, item in _waiting_clips(segments):
            reply = self._replies.get((segment.segment_id, at), NoAnswer("the engine gave no row"))
            done = self._answers.handle(item, reply, untrained=self._untrained)
            segment.clips[at] = done if isinstance(done, Clip) else done.to_clip()
        return segments


def processor(settings: SeenSettings) -> Any:
    """Build Ray Data's LLM processor on vLLM. Needs a running Ray.

    Returns:
        A callable from a dataset of `_REQUESTS` to a dataset of (segment_id, at, answer). A row for which vLLM failed
        has `__inference_error__` and no answer.
    """
    import ray
    from ray.data.llm import build_processor

    return build_processor(
        engine_config(
            settings,
            gpus=ray.cluster_resources().get("GPU", 0) >= 1,
            chat_template=template_without_bos(settings.model),
        ),
        preprocess=partial(_to_vllm, settings=settings),
        postprocess=_from_vllm,
        preprocess_map_kwargs=_HELPER_RESOURCES,
        postprocess_map_kwargs=_HELPER_RESOURCES,
    )


def template_without_bos(model: str) -> str | None:
    """Return the model's chat template without its BOS token, if the tokenizer adds that token too.

    vLLM tokenizes the text that the template makes, and would add the BOS token a second time.

    Args:
        model: the model's folder or hub id.

    Returns:
        The changed template; None when nothing must be changed.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    tokenizer, template = getattr(processor, "tokenizer", processor), processor.chat_template
    adds = tokenizer.bos_token_id in tokenizer("").input_ids
    without = _BOS.sub(r"\1''\2", template or "", count=1)
    return without if adds and without != template else None


def engine_config(settings: SeenSettings, *, gpus: bool = True, chat_template: str | None = None) -> Any:
    """Return the configuration of vLLM's processor: answers follow the JSON schema; pictures are in the messages.

    Args:
        settings: the model and its options.
        gpus: whether the cluster has GPUs. Without them vLLM's CPU build runs, and Ray must not wait for a GPU.
        chat_template: replaces the model's template.
    """
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs={
            "dtype": settings.dtype,
            "limit_mm_per_prompt": {"image": settings.frames},
            "seed": 0,
            # Forbid white space: the schema does not limit it, and a model may write blanks until its last token.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            **settings.engine_options,
        },
        placement_group_config=None if gpus else {"bundle_per_worker": {"CPU": 0.5}},
        concurrency=settings.workers,
        batch_size=16,
        should_continue_on_error=True,
        log_engine_metrics=False,
        # Pass content as parts, so that the model's template puts the picture's marker at the picture's position.
        prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai", **_HELPER_RESOURCES},
        chat_template_stage={"chat_template": chat_template, **_HELPER_RESOURCES},
        # vLLM does both itself; each stage would be one more process that imports vLLM.
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _to_vllm(row: dict[str, Any], settings: SeenSettings) -> dict[str, Any]:
    """Convert a row of `_REQUESTS` to a row that vLLM reads: key, chat messages and sampling parameters."""
    request = json.loads(row["request"])
    sampling = {
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": settings.max_tokens,
        "structured_outputs": {"json": json.dumps(request["schema"])},
    }
    key = {"segment_id": row["segment_id"], "at": row["at"]}
    return {**key, "messages": request["messages"], "sampling_params": sampling}


def _from_vllm(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row that vLLM returns to the key of the clip and the answer's text."""
    return {"segment_id": row["segment_id"], "at": row["at"], "answer": row["generated_text"]}
