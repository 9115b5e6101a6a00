"""Draw the two pictures of docs/architecture.md, the path of a clip and the path of a batch, as SVG files.

    python docs/draw_paths.py

A step names real code as `module:symbol`; a test (tests/docs/test_architecture.py) fails when a name is gone.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"

WIDTH, LANE, ROW, GAP, HEAD = 960, 190, 58, 20, 56  # pixels
COLOURS = {
    "driver": "#e3ecf7",
    "Ray worker": "#e6f2e2",
    "child process": "#fbeedb",
    "reader thread": "#fbeedb",
    "training worker": "#e6f2e2",
    "writer thread": "#f3e4ee",
}


@dataclass(frozen=True)
class Step:
    """One box of a picture.

    Attributes:
        where: the process or thread that runs it, a key of `COLOURS`.
        code: `module:symbol`.
        text: what it does.
    """

    where: str
    code: str
    text: str


CLIP = (
    Step("driver", "data_prep.sources.listing:each_source", "list the source segments; open no video"),
    Step("driver", "pipelines.dataflow.prepare:run_prepare", "take the segments that have no ledger entry"),
    Step("driver", "pipelines.dataflow.graph:run_graph", "stream segments through one actor pool per stage"),
    Step("Ray worker", "data_prep.curation.sandbox:Sandbox", "curate in a child process: a codec may crash"),
    Step("child process", "data_prep.curation.curator:Curator.spans", "divide the segment into spans"),
    Step("child process", "data_prep.curation.span_sound:read_span_sound", "decode the sound of a span once"),
    Step("child process", "data_prep.curation.scenes:divide_scene", "divide the span into clips, at scene cuts"),
    Step("child process", "data_prep.curation.gates:pass_gates", "measure gate by gate, up to the first that drops"),
    Step("child process", "data_prep.media.cut:cut", "copy packets, with exact in and out points"),
    Step("child process", "data_prep.curation.kept_clip_scores:KeptClipScorer", "score the kept clip: loudness, …"),
    Step("Ray worker", "captioning.captioner:Captioner", "transcribe, listen and look: collect facts"),
    Step("Ray worker", "captioning.write.compose:compose", "write sentences from the facts"),
    Step("Ray worker", "captioning.grounding.checker:ground", "remove each sentence that no fact supports"),
    Step("Ray worker", "pipelines.dataflow.encode:Encoder", "encode video latents, audio latents, text features"),
    Step("Ray worker", "data_prep.dataset.shards:commit_segment", "write shard, manifest rows, then ledger entry"),
    Step("driver", "pipelines.dataflow.commit:finish", "write index.parquet, then summary.json"),
)

BATCH = (
    Step("driver", "pipelines.training.driver:train", "check the user's input; start the workers"),
    Step("training worker", "pipelines.training.worker:Trainer", "build task, engine, plan; load the checkpoint"),
    Step("training worker", "data_prep.loading.batch_plan:plan", "index, seed, world → rows of each step and rank"),
    Step("reader thread", "data_prep.loading.loader:Prefetch", "read two steps ahead"),
    Step("reader thread", "data_prep.loading.loader:EncodedSamples.batch", "read byte ranges of tar shards"),
    Step("training worker", "model.flow:TrainingSigma.sample_pair", "draw σ of video and audio"),
    Step("training worker", "model.flow:add_noise", "x_σ = (1 − σ)·x₀ + σ·ε, with σ = 0 for given tokens"),
    Step("training worker", "model.text_conditioner:TextConditioner.connect", "text features → context of each stream"),
    Step("training worker", "model.transformer:DualStreamTransformer", "predict the velocity of both streams"),
    Step("training worker", "pipelines.training.tasks.helpers.diffusion:token_error", "mean squared error per sample"),
    Step("training worker", "pipelines.training.worker:Trainer.train", "backward and step, by DeepSpeed (ZeRO-3)"),
    Step("training worker", "pipelines.training.ema:MovingAverage.update", "update the moving average (EMA)"),
    Step("training worker", "pipelines.training.metrics:Means.take", "on a log step, reduce losses over all ranks"),
    Step("driver", "pipelines.training.relay:relayed", "read metrics.jsonl; send the records to MLflow"),
    Step("writer thread", "pipelines.training.checkpoint:Writer.save", "write a checkpoint while training continues"),
    Step("training worker", "pipelines.training.worker:Trainer.export", "write the averaged weights to weights/"),
)


def draw(title: str, steps: tuple[Step, ...]) -> str:
    """Return a picture as SVG: the steps from top to bottom, coloured by where they run."""
    height = HEAD + len(steps) * (ROW + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555555"/></marker></defs>',
        f'<text x="20" y="32" font-size="20" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    for number, step in enumerate(steps):
        top = HEAD + number * (ROW + GAP)
        module, symbol = step.code.split(":")
        parts += [
            f'<text x="20" y="{top + 35}" font-size="14" fill="#555555">{escape(step.where)}</text>',
            f'<rect x="{LANE}" y="{top}" width="{WIDTH - LANE - 20}" height="{ROW}" rx="6" '
            f'fill="{COLOURS[step.where]}" stroke="#888888"/>',
            f'<text x="{LANE + 14}" y="{top + 24}" font-size="15" font-weight="bold" fill="#222222">'
            f"{escape(symbol)}</text>",
            f'<text x="{LANE + 14}" y="{top + 45}" font-size="12" font-family="monospace" fill="#555555">'
            f"{escape(module.replace('.', '/') + '.py')}</text>",
            f'<text x="{LANE + 400}" y="{top + 35}" font-size="13" fill="#222222">{escape(step.text)}</text>',
        ]
        if number + 1 < len(steps):
            parts.append(
                f'<line x1="{LANE + 60}" y1="{top + ROW}" x2="{LANE + 60}" y2="{top + ROW + GAP - 3}" '
                'stroke="#555555" marker-end="url(#tip)"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


PICTURES = {
    "clip_path.svg": ("The path of a clip", CLIP),
    "batch_path.svg": ("The path of a batch (task dit)", BATCH),
}


if __name__ == "__main__":
    for name, (title, steps) in PICTURES.items():
        (IMAGES / name).write_text(draw(title, steps), encoding="utf-8")
