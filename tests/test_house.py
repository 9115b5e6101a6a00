"""The house rules that a machine can hold: who may import what, how long a file may be, what stays out of git."""

import ast
import configparser
import os
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: a folder imports from itself and from those before it.
FLOORS = ("model", "data_prep", "captioning", "pipelines", "jobs")
PYTHON_FOLDERS = (*FLOORS, "benchmarks", "tests")
OWNERS = {"ray": {"pipelines", "jobs"}, "deepspeed": {"pipelines"}, "mlflow": {"pipelines"}}
MODEL_AT_ANY_TIME = {"torch", "model"}
# Optional: inside the function that needs it, or under `try … except ImportError`.
MODEL_LAZILY = {"safetensors", "transformers", "tokenizers", "flash_attn_interface"}
MAX_LINES = 600
MAX_MODULES = 15


def _python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _names(node: ast.AST, path: Path) -> list[str]:
    """Dotted names of modules (or of things in them) that an import statement asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            base = ".".join([*package, *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def _imports(path: Path) -> list[str]:
    """Every import of a file, wherever it stands."""
    return [name for node in ast.walk(_tree(path)) for name in _names(node, path)]


def _module_level_imports(path: Path) -> list[str]:
    """Those that must succeed when the file is imported: not inside a function, nor under `if TYPE_CHECKING` or `try`
    with an ImportError caught."""
    found: list[str] = []
    pending: list[ast.AST] = list(_tree(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in node.handlers if h.type):
            pending.extend([*node.orelse, *node.finalbody])
            continue
        found.extend(_names(node, path))
        pending.extend(ast.iter_child_nodes(node))
    return found


def _runtime_imports(path: Path) -> list[str]:
    """Every import that can run, inside functions and `try` too: all but those under `if TYPE_CHECKING`."""
    found: list[str] = []
    pending: list[ast.AST] = [_tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        found.extend(_names(node, path))
        pending.extend(ast.iter_child_nodes(node))
    return found


def _where(path: Path, name: str) -> str:
    return f"{path.relative_to(ROOT)} imports {name}"


def test_imports_run_one_way() -> None:
    upward = [
        _where(path, name)
        for floor, folder in enumerate(FLOORS)
        for path in _python_files(folder)
        for name in _imports(path)
        if name.split(".")[0] in (*FLOORS[floor + 1 :], "tests", "benchmarks")
    ]
    assert not upward, upward


def test_no_circles() -> None:
    """Lazy imports count: a circle hidden inside a function is still a circle of ideas."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in _python_files(*FLOORS)}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in _runtime_imports(path):
            # `from a.b import c` names the module a.b.c or something in a.b.
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' → '.join(error.args[1])}")


def test_ray_deepspeed_mlflow_stay_where_they_belong() -> None:
    strays = [
        _where(path, name)
        for folder in FLOORS
        for path in _python_files(folder)
        for name in _imports(path)
        if folder not in OWNERS.get(name.split(".")[0], {folder})
    ]
    assert not strays, strays


def test_model_needs_only_torch() -> None:
    standard = sys.stdlib_module_names
    strays: list[str] = []
    for path in _python_files("model"):
        for name in _module_level_imports(path):
            if name.split(".")[0] not in standard | MODEL_AT_ANY_TIME:
                strays.append(_where(path, name))
        for name in _imports(path):
            if name.split(".")[0] not in standard | MODEL_AT_ANY_TIME | MODEL_LAZILY:
                strays.append(_where(path, name))
    assert not strays, strays


def test_settings_models_are_in_settings_files() -> None:
    # A verb of the command is a settings model too, and a bucket is one with its geometry.
    exempt = {"jobs/verbs.py", "data_prep/loading/buckets.py"}
    strays = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in _python_files(*FLOORS)
        if path.name != "settings.py" and str(path.relative_to(ROOT)) not in exempt
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Settings") for base in node.bases)
    ]
    assert not strays, f"{strays}: move them to the settings.py of their package"


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in _python_files(*PYTHON_FOLDERS)}
    long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]
    assert not long, f"over {MAX_LINES} lines: {long}; give the second idea its own file"


def _modules(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.py") if path.name != "__init__.py"]


def _folders(*folders: str) -> list[Path]:
    return sorted({path.parent for path in _python_files(*folders)})


def test_folders_hold_few_modules() -> None:
    exempt = {ROOT / "model", ROOT / "tests" / "model"}
    full = [
        f"{folder.relative_to(ROOT)}: {len(_modules(folder))} modules"
        for folder in _folders(*PYTHON_FOLDERS)
        if folder not in exempt and len(_modules(folder)) > MAX_MODULES
    ]
    assert not full, f"over {MAX_MODULES} modules: {full}; give what belongs together a folder of its own"


def test_every_folder_of_modules_is_a_package() -> None:
    # What is no package is not installed, and two tests of one name in folders that are none cannot both be imported.
    bare = [str(f.relative_to(ROOT)) for f in _folders(*PYTHON_FOLDERS) if not (f / "__init__.py").exists()]
    assert not bare, f"no __init__.py in {bare}"


@cache
def _tracked() -> dict[Path, str]:
    """Text of every tracked file."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are tracked is not known")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    texts: dict[Path, str] = {}
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data:
            texts[path] = data.decode("utf-8", errors="replace")
    return texts


def _matches(pattern: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:160]}"
        for path, text in _tracked().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def test_no_path_of_one_machine_is_tracked() -> None:
    # Home folders, and where this checkout stands. /home/ray is the home of the public Ray images.
    homes = r"(?<![\w.])/(?:root|Users/\w+|home/(?!ray\b)\w+)/"
    here = r"(?<![\w.])" + re.escape(str(ROOT.parent)) + r"/" if len(ROOT.parent.parts) > 1 else homes
    found = _matches(f"{homes}|{here}")
    assert not found, found


def _index_hosts() -> set[str]:
    """Hosts and folders that this machine installs packages from, other than the public index."""
    parser = configparser.ConfigParser()
    parser.read([Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"])
    values = [parser[s][k] for s in parser.sections() for k in parser[s] if k.replace("_", "-").endswith("index-url")]
    values += [value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_")) and "INDEX" in name]
    parts = [urlsplit(url) for value in values for url in value.split()]
    return {p.hostname or p.path for p in parts if p.hostname or p.path.strip("/")} - {"pypi.org"}


def test_no_index_address_is_tracked() -> None:
    found = _matches(r"--(?:extra-)?index-url[ =]\S|^\s*(?:extra-)?index-url\s*=|/simple/?(?:['\"\s]|$)")
    for host in _index_hosts():
        found += _matches(re.escape(host))
    assert not found, found
