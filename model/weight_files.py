"""Read and write safetensors files, one tensor at a time.

A safetensors file has 8 bytes of header length (little-endian), a JSON header {key: {dtype, shape, data_offsets}} with
an optional `__metadata__` of strings, then the bytes of the tensors without gaps. The safetensors library writes a file
only from all tensors at once, but a 38 GB model must never be in the memory of one host completely. So the writer here
takes shapes and types first, then tensors in any order. Reading uses the library, which maps the file.

Nothing is unpickled, here or elsewhere.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the library refuses a longer header
_UNKNOWN_HASH = "0" * 64


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Header(NamedTuple):
    """Header of a safetensors file: the specs by key, and the metadata."""

    specs: dict[str, Spec]
    metadata: dict[str, str]


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Return shape and type of each tensor, by key."""
    return {key: Spec(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


# ---- reading


def read_header(path: str | os.PathLike) -> Header:
    """Read keys, shapes, types and metadata of a safetensors file, without its tensors.

    Raises:
        ValueError: there is no such file, or it is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError("header too long")
            raw: dict[str, Any] = json.loads(file.read(length))
        metadata = raw.pop("__metadata__", {})
        specs = {key: Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]]) for key, entry in raw.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); give a .safetensors file") from error
    return Header(specs, metadata)


def read_tensors(path: str | os.PathLike, keys: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (key, CPU tensor) one at a time, in the order of `keys`, or of the file where `keys` is None."""
    from safetensors import safe_open  # imported here, because model/ needs only torch as long as it reads no file

    with safe_open(path, framework="pt", device="cpu") as file:
        for key in file.keys() if keys is None else keys:
            yield key, file.get_tensor(key)


def shards_of(path: str | os.PathLike) -> list[Path]:
    """List the safetensors files of a model.

    Args:
        path: a .safetensors file, an `*.index.json` as Hugging Face writes it, or a folder with one index or, without
            an index, with .safetensors files.

    Raises:
        ValueError: there is no such file, or a shard that the index names is missing.
    """
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        if len(indices) > 1:
            raise ValueError(f"{path}: several index files ({', '.join(i.name for i in indices)}); name one of them")
        if indices:
            return shards_of(indices[0])
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path}: no .safetensors file in this folder")
        return files
    if path.name.endswith(".json"):
        try:
            weight_map: dict[str, str] = json.loads(path.read_text())["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not an index of safetensors shards (no weight_map)") from error
        shards = [path.parent / name for name in sorted(set(weight_map.values()))]
        for shard in shards:
            if not shard.is_file():
                raise ValueError(f"{shard}: this shard is listed in {path.name} but missing")
        return shards
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file or folder")
    return [path]


# ---- writing


class FileWriter:
    """Writer of one safetensors file: takes tensors in any order, and renames the file into place in `finish`.

    Until then the data are in a temporary file of the same folder, which is deleted if the context ends first.

    The header precedes the tensors. So a metadata value that depends on the tensors, such as a hash, starts as a
    placeholder of the same length, which `finish` replaces.

        with FileWriter(path, specs, metadata) as file:
            file.write(key, tensor)
            ...
            file.finish()

    Args:
        path: file to write.
        specs: shape and type of each tensor, by key.
        metadata: text entries of the header.
    """

    def __init__(self, path: str | os.PathLike, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._specs = dict(specs)
        self._missing = set(specs)
        self._metadata = dict(metadata)
        # Wide types first, as the library does, so that every tensor is aligned to the width of its type.
        order = sorted(specs, key=lambda key: (-specs[key].dtype.itemsize, key))
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for key in order:
            if specs[key].dtype not in _NAMES:
                raise ValueError(f"{key}: safetensors has no type for {specs[key].dtype}")
            start, end = end, end + _nbytes(specs[key])
            self._offsets[key] = (start, end)
        self._header_length = len(self._header())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the rename is atomic.
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        os.fchmod(handle, 0o644)
        self._temporary = Path(name)
        self._file: IO[bytes] = os.fdopen(handle, "wb")

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor. Call this exactly once for each key of `specs`, with the shape and type that it names."""
        assert key in self._missing, f"{key} written twice or not announced"
        assert Spec(tuple(tensor.shape), tensor.dtype) == self._specs[key], f"{key} is not what was announced"
        self._missing.remove(key)
        self._file.seek(8 + self._header_length + self._offsets[key][0])
        self._file.write(raw_bytes(tensor))

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Replace metadata values and rename the file into place.

        Args:
            metadata: new values, of the same length, for keys that the header has.

        Raises:
            ValueError: a tensor was not written.
        """
        if self._missing:
            raise ValueError(f"{self.path}: {len(self._missing)} tensors were never written, e.g. {min(self._missing)}")
        self._metadata.update(metadata or {})
        header = self._header()
        assert len(header) == self._header_length
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.close()
        os.replace(self._temporary, self.path)

    def _header(self) -> bytes:
        """Return the JSON header as bytes, padded with spaces to a multiple of 8."""
        entries: dict[str, Any] = {"__metadata__": self._metadata} if self._metadata else {}
        for key, offsets in self._offsets.items():
            spec = self._specs[key]
            entries[key] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": list(offsets)}
        raw = json.dumps(entries, separators=(",", ":")).encode()
        return raw + b" " * (-len(raw) % 8)

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, row-major, little-endian. Copies only what is not contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _nbytes(spec: Spec) -> int:
    """Return the size of a tensor in bytes."""
    count = 1
    for size in spec.shape:
        count *= size
    return count * spec.dtype.itemsize


# ---- fingerprint


class Fingerprint:
    """SHA-256 of a component's configuration and tensors, the same for every order and layout of storage.

    Args:
        config: the configuration as JSON values.
    """

    LENGTH = len(_UNKNOWN_HASH)
    PLACEHOLDER = _UNKNOWN_HASH

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = json.dumps(config, sort_keys=True)
        self._digests: dict[str, bytes] = {}

    def add(self, key: str, tensor: Tensor) -> None:
        """Add a tensor; the order of the calls does not matter."""
        digest = hashlib.sha256(f"{key} {_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(raw_bytes(tensor))
        self._digests[key] = digest.digest()

    def hexdigest(self) -> str:
        """Return the fingerprint of the configuration and of all added tensors, 64 hexadecimal digits."""
        digest = hashlib.sha256(self._config.encode())
        for key in sorted(self._digests):
            digest.update(self._digests[key])
        return digest.hexdigest()
