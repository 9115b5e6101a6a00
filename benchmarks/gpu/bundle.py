"""The wheels of `make gpu-bundle`, put on the import path of a machine that has torch and little else.

A wheel is a zip file, so unpacking is all that it needs. What the machine has of its own comes first.
"""

import importlib.metadata
import sys
import tempfile
import zipfile
from pathlib import Path


def add_missing(folder: Path) -> list[str]:
    """Unpack the wheels in `folder` whose package is not installed here, and append them to `sys.path`.

    Returns:
        Names of the packages that were added.

    Raises:
        ValueError: a wheel is for another version of Python.
    """
    missing = [wheel for wheel in sorted(folder.glob("*.whl")) if not _installed(wheel.name.split("-")[0])]
    if not missing:
        return []
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for wheel in missing:
        tag = wheel.stem.split("-")[2]
        if tag.startswith("cp") and tag != here and "abi3" not in wheel.stem:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise ValueError(f"{wheel.name} is for another Python; run `make gpu-bundle GPU_PYTHON={version}`")
    site = tempfile.mkdtemp(prefix="gpu-bundle-")
    for wheel in missing:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    sys.path.append(site)
    return [wheel.name.split("-")[0] for wheel in missing]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
