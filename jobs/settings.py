"""Recipes: a recipe is a YAML file with the settings of every stage. A verb reads its sections of it.

A recipe is given as a file, or as the name of one in a folder of `jobs/recipes/` ("tiny"). A section that it leaves out
has its defaults; an unknown key is an error. `train` has the settings that all training tasks share; `tasks.<name>` has
those that differ for one task, and takes precedence.
"""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from captioning.settings import CaptionSettings
from data_prep.settings import CurateSettings, Settings, SynthSettings
from pipelines.settings import EncodeSettings, GenerateSettings, TrackingSettings
from pipelines.training.settings import TrainSettings

RECIPES = resources.files("jobs") / "recipes"


class Recipe(Settings):
    """The settings of every stage. Each key is a section; an unknown one is an error."""

    synth: SynthSettings = SynthSettings()
    curate: CurateSettings = CurateSettings()
    caption: CaptionSettings = CaptionSettings()
    encode: EncodeSettings = EncodeSettings()
    train: TrainSettings = TrainSettings()
    tasks: dict[str, TrainSettings] = Field(default_factory=dict)
    generate: GenerateSettings = GenerateSettings()
    tracking: TrackingSettings = TrackingSettings()

    def for_task(self, task: str) -> TrainSettings:
        """Return the training settings of one task: those of `tasks.<task>`, and of `train` where it has none."""
        return self.tasks.get(task, self.train)


def packaged_recipes() -> dict[str, Traversable]:
    """Return the packaged recipe files by name, without the suffix."""
    files = (file for folder in RECIPES.iterdir() if folder.is_dir() for file in folder.iterdir())
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def load_recipe(name: str | Path | None) -> Recipe:
    """Load a recipe from a file, or from the packaged recipe of that name.

    Args:
        name: path or name; None: a recipe that has only defaults.

    Raises:
        ValueError: no such recipe, not YAML, an unknown key or a wrong value; one line that names the file and the
            field.
    """
    if name is None:
        return Recipe()
    path = Path(name)
    if not path.suffix and not path.exists():
        packaged = packaged_recipes()
        if str(name) not in packaged:
            raise ValueError(f"recipe {name}: no such file, nor a recipe of ours ({', '.join(sorted(packaged))})")
        text = packaged[str(name)].read_text()
    elif not path.is_file():
        raise ValueError(f"recipe {path}: no such file; give a YAML file or a name from jobs/recipes")
    else:
        text = path.read_text()
    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ValueError(f"recipe {path}: holds a {type(raw).__name__}; write sections such as 'train:'")
    shared = raw.get("train") or {}
    raw["tasks"] = {task: _laid_over(shared, own or {}) for task, own in (raw.get("tasks") or {}).items()}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"recipe {path}: {first_problem(error, Recipe)}") from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first problem of a validation error in one line.

    Args:
        error: what pydantic raised.
        model: the settings model that was validated.

    Returns:
        The dotted field, what is wrong, and for an unknown key the known ones.
    """
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join(place)}: {problem['msg']} (got {problem['input']!r})"
    known = _fields_at(model, place[:-1])
    return f"{'.'.join(place)}: unknown key; known here: {', '.join(known)}"


def _fields_at(model: Any, place: list[str]) -> list[str]:
    """Return the sorted field names of the settings class to which the keys `place` lead from `model`."""
    for part in place:
        fields = getattr(model, "model_fields", None)
        model = fields[part].annotation if fields is not None else model.__args__[-1 if model.__origin__ is dict else 0]
    return sorted(getattr(model, "model_fields", {}))


def _laid_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `over` added or replaced; dicts that both have are merged in the same way."""
    both = [key for key in over if isinstance(over[key], dict) and isinstance(base.get(key), dict)]
    return {**base, **over, **{key: _laid_over(base[key], over[key]) for key in both}}
