"""The verbs of the `kinotone` command. A verb is a class: its fields are the flags, and `run` calls `pipelines`.

`run` imports the implementation, so that the help loads neither torch nor Ray. A verb's docstring is its line in the
help.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import Field
from typing_extensions import override

from captioning.settings import CaptionSettings
from data_prep.settings import CurateSettings, Settings, SynthSettings
from jobs.progress import Display
from jobs.settings import Recipe
from pipelines.settings import EncodeSettings, GenerateSettings, TrackingSettings
from pipelines.training.settings import TrainSettings

Task = Annotated[str, tyro.conf.Positional]


class Verb(Settings):
    """The base of every verb. A field named like a section of the recipe takes its default from there."""

    recipe: str | None = Field(None, description="recipe file (YAML), or the name of one in jobs/recipes, e.g. tiny")

    @classmethod
    def from_recipe(cls, recipe: Recipe, args: list[str]) -> "Verb":
        """Return the verb with the defaults that a recipe gives it.

        Args:
            recipe: the recipe. A field that is no section of it and has no default is required on the command line.
            args: the command line after the verb, for a verb whose defaults depend on it.
        """
        values: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if name in Recipe.model_fields:
                values[name] = getattr(recipe, name)
            elif field.is_required():
                values[name] = tyro.MISSING
        return cls.model_construct(**values)

    def run(self, display: Display) -> None:
        """Do the verb's work with the settings of this object.

        Args:
            display: shows progress.

        Raises:
            ValueError: the user's mistake, with its fix, before any work starts.
        """
        raise NotImplementedError


class Synth(Verb):
    """Make a labelled synthetic corpus: visible events with their sounds, speech, music, silence, noise."""

    output: Path = Field(description="folder for clips/*.mp4 and labels.parquet")
    synth: SynthSettings

    @override
    def run(self, display: Display) -> None:
        from data_prep.synthetic import generate

        generate(self.synth, self.output, display)


class _DataVerb(Verb):
    """The base of the verbs that run `stages` of the dataflow from sources to an encoded set."""

    stages: ClassVar[tuple[str, ...]]
    input: list[str] = Field(
        description="files, folders, globs, tars or lists of video, here or on s3://; for caption and encode: a set"
    )
    output: str = Field(description="folder or s3:// address of the set that is made; the same command resumes it")
    tracking: TrackingSettings

    @override
    def run(self, display: Display) -> None:
        from pipelines.dataflow.prepare import run_prepare

        settings = {name: getattr(self, name) for name in self.stages}
        run_prepare(self.stages, self.input, self.output, settings, self.tracking, display)


class Curate(_DataVerb):
    """Cut raw sources into clips with informative audio, with a manifest and a report."""

    stages: ClassVar = ("curate",)
    input: list[str] = Field(default=[], description="files, folders, globs, tars or lists of video, here or on s3://")
    rejudge: str | None = Field(None, description="instead of input: a curated set to judge again by these thresholds")
    curate: CurateSettings

    @override
    def run(self, display: Display) -> None:
        from pipelines.dataflow.prepare import REJUDGE, run_prepare

        if bool(self.input) == bool(self.rejudge):
            raise ValueError("curate: give --input with videos, or --rejudge with a curated set")
        if self.rejudge:
            settings = {REJUDGE: self.curate}
            run_prepare((REJUDGE,), [self.rejudge], self.output, settings, self.tracking, display)
        else:
            super().run(display)


class Calibrate(Verb):
    """Compare labels with a set: precision, recall, a curve for each threshold, proposed thresholds."""

    labels: Path = Field(
        description=".tsv with columns file, class and verdict (keep or drop), or .parquet of synth; or the filled-in "
        "report/review.tsv of a captioned set"
    )
    input: str = Field(
        description="folder or s3:// address of what `curate` made of the labelled files, or of that captioned set"
    )
    output: str = Field(description="folder for calibration.html, policy.yaml and summary.json; of captions the last")

    @override
    def run(self, display: Display) -> None:
        from pipelines.report.review import is_review, run_review

        if is_review(self.labels):
            read = run_review(self.labels, self.input, self.output)
            display.say(
                f"{read['sentences']} sentences judged, {read['true']} of them true\n"
                f"  summary  {self.output}/summary.json"
            )
            return
        from pipelines.dataflow.calibrate import run_calibrate

        found = run_calibrate(self.labels, self.input, self.output)
        display.say(
            f"{found['sources']} labelled sources: {found['verdicts_right']} verdicts and {found['classes_right']} "
            f"classes right; precision {found['precision']:.3f}, recall {found['recall']:.3f}\n"
            f"  page        {self.output}/calibration.html\n"
            f"  thresholds  {self.output}/policy.yaml"
        )


class Caption(_DataVerb):
    """Write factual captions of what is seen and heard in a curated set."""

    stages: ClassVar = ("caption",)
    caption: CaptionSettings


class Encode(_DataVerb):
    """Encode a captioned set: video latents, audio latents, text features and the training index."""

    stages: ClassVar = ("encode",)
    encode: EncodeSettings


class Prepare(_DataVerb):
    """Curate, caption and encode as one streaming graph."""

    stages: ClassVar = ("curate", "caption", "encode")
    curate: CurateSettings
    caption: CaptionSettings
    encode: EncodeSettings


class Train(Verb):
    """Train one task (dit, text-projection, video-vae, audio-vae, vocoder, upscaler) on Ray Train and DeepSpeed."""

    task: Task = Field(description="what is trained: dit, text-projection, video-vae, audio-vae, vocoder or upscaler")
    output: Path = Field(description="folder of checkpoints and final weights; the same command resumes it")
    input: str | None = Field(
        None, description="encoded set (dit, text-projection) or curated set (the others); over train.input"
    )
    init_from: tuple[str, ...] = Field((), description="model folders or runs to start from; over train.init-from")
    train: TrainSettings
    tracking: TrackingSettings

    @classmethod
    @override
    def from_recipe(cls, recipe: Recipe, args: list[str]) -> "Verb":
        """Return the verb with the recipe's settings for the task, which is the first of `args`."""
        task = args[0] if args and not args[0].startswith("-") else ""
        return super().from_recipe(recipe.model_copy(update={"train": recipe.for_task(task)}), args)

    @override
    def run(self, display: Display) -> None:
        from pipelines.training.driver import train

        given = {name: value for name in ("input", "init_from") if (value := getattr(self, name))}
        train(self.task, self.train.model_copy(update=given), self.output, self.tracking, display)


class Plan(Verb):
    """Estimate what a recipe needs: memory per GPU, operations, traffic, step time, days and GPU-hours."""

    recipe: str | None = Field("ltx2-19b", description="recipe file (YAML), or the name of one in jobs/recipes")
    nodes: int = Field(default=8, description="machines", ge=1)
    gpus_per_node: int = Field(default=8, description="GPUs of a machine", ge=1)
    gpu: Literal["H100", "H200", "A100-80GB"] = Field(default="H100", description="kind of GPU")
    mfu: float = Field(default=0.35, description="part of the GPU's peak that training reaches", gt=0, le=1)
    bandwidth: float = Field(default=300.0, description="what a GPU sends and receives over nodes, GB/s", gt=0)
    train: TrainSettings
    encode: EncodeSettings

    @classmethod
    @override
    def from_recipe(cls, recipe: Recipe, args: list[str]) -> "Verb":
        """Return the verb with the recipe's settings for task dit."""
        return super().from_recipe(recipe.model_copy(update={"train": recipe.for_task("dit")}), args)

    @override
    def run(self, display: Display) -> None:
        from jobs.plan import show
        from pipelines.training.budget import Cluster

        cluster = Cluster(self.nodes, self.gpus_per_node, self.gpu, self.mfu, self.bandwidth)
        show(self.train, self.encode.buckets, cluster, display.console)


class Generate(Verb):
    """Generate mp4 files with stereo sound from prompts and a trained checkpoint."""

    checkpoint: Path = Field(description="a training run's output, or a model folder with all its parts")
    prompts: Path = Field(description="text file, one prompt per line")
    output: Path = Field(description="folder for the samples")
    generate: GenerateSettings
    tracking: TrackingSettings

    @override
    def run(self, display: Display) -> None:
        from pipelines.generate import generate, read_prompts

        generate(self.checkpoint, read_prompts(self.prompts), self.generate, self.output, self.tracking, display)


class Export(Verb):
    """Export weights as the published single file, as diffusers folders or in Kinotone's layout."""

    checkpoint: Path = Field(description="a training run's output, a model folder or a weight file, of any layout")
    layout: Literal["ltx", "diffusers", "kinotone"] = Field(
        description="ltx: one .safetensors file as published; diffusers: a folder per part; kinotone: a file per part"
    )
    output: Path = Field(description="ltx: a name that ends in .safetensors; else a folder")
    parts: tuple[str, ...] = Field((), description="e.g. transformer video_vae; empty: all that are there")

    @override
    def run(self, display: Display) -> None:
        from model import weights
        from pipelines.model_folder import model_folder

        weights.convert(model_folder(self.checkpoint), self.output, self.layout, self.parts or None, display)


class Demo(Verb):
    """Run the main job end to end on embedded defaults: from clips to a trained tiny model and a playable mp4."""

    recipe: str | None = Field("tiny", description="recipe file (YAML), or the name of one in jobs/recipes")
    output: Path = Field(Path("runs/demo"), description="folder of all runs; the same command resumes it")
    input: list[str] = Field(default=[], description="your own clips instead of the synthetic corpus")

    @override
    def run(self, display: Display) -> None:
        from jobs.demo import run_demo
        from jobs.settings import load_recipe

        run_demo(load_recipe(self.recipe), self.output, self.input, display)


class Doctor(Verb):
    """List what is missing on this machine, and how to fix it."""

    @override
    def run(self, display: Display) -> None:
        from jobs.doctor import report

        report(display.console)


VERBS: dict[str, type[Verb]] = {
    "demo": Demo,
    "synth": Synth,
    "curate": Curate,
    "calibrate": Calibrate,
    "caption": Caption,
    "encode": Encode,
    "prepare": Prepare,
    "train": Train,
    "plan": Plan,
    "generate": Generate,
    "export": Export,
    "doctor": Doctor,
}
