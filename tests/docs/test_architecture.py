"""docs/architecture.md names only what exists, and the README leads to it."""

import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("model", "data_prep", "captioning", "pipelines", "jobs")
# The ideas that a reader must find in at most two hops from the README: README → architecture.md → file.
IDEAS = (
    "A↔V attention",
    "timestep semantics",
    "loudness",
    "the silence rule",
    "the exact cut",
    "commit of a segment",
    "resume of training",
    "σ sampling",
    "EMA",
    "the caption checker",
    "the Ray graph",
    "MLflow logging",
    "a recipe field",
)


@cache
def _symbols(path: Path) -> set[str]:
    """Names that a module defines: functions, classes, constants and `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@cache
def _drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_paths", ROOT / "docs" / "draw_paths.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclass looks its module up by name
    spec.loader.exec_module(module)
    return module


def test_every_link_and_path_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    links = {(PAGE.parent / target.split("#")[0]).resolve() for target in re.findall(r"\]\(([^)#][^)]*)\)", text)}
    paths = {ROOT / path for path in re.findall(r"`((?:\w+/)+(?:[\w.-]+\.(?:py|md|yaml))?)`", text)}
    gone = [str(path) for path in links | paths if not path.exists()]
    assert not gone, gone


def test_every_room_exists() -> None:
    (drawing,) = re.findall(r"## The packages\n\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = ROOT
    drawn: set[Path] = set()
    for line in drawing.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = ROOT / name if indent == 0 else folder
        drawn.add(folder if indent == 0 else folder / name)
    rooms = {path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert not {path for path in drawn if not path.is_dir()}
    assert rooms <= drawn, f"rooms that the page does not name: {rooms - drawn}"


def test_every_symbol_of_the_table_exists() -> None:
    rows = re.findall(r"^\| .* \| (.*\]\(.*) \| (.*) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= len(IDEAS)
    for files, names in rows:
        paths = [(PAGE.parent / target).resolve() for target in re.findall(r"\]\(([^)]*)\)", files)]
        known = set().union(*(_symbols(path) for path in paths if path.suffix == ".py"))
        missing = set(re.findall(r"`([^`]+)`", names)) - known
        assert not missing, f"{missing} not in {files}"


@pytest.mark.parametrize("idea", IDEAS)
def test_every_idea_is_two_hops_from_the_readme(idea: str) -> None:
    assert "(docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## Where is …\?\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    ideas = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    assert any(idea in row for row in ideas), f"no row for {idea!r}"


@pytest.mark.parametrize("picture", ["clip_path.svg", "batch_path.svg"])
def test_pictures_are_drawn_from_the_code(picture: str) -> None:
    drawing = _drawing()
    title, steps = drawing.PICTURES[picture]
    for step in steps:
        module, symbol = step.code.split(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.is_file(), step.code
        assert symbol in _symbols(path), step.code
    current = (ROOT / "docs" / "images" / picture).read_text(encoding="utf-8")
    assert current == drawing.draw(title, steps), f"run: python docs/draw_paths.py ({picture} is old)"
