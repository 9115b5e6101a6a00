"""Find and check components on disk, in any of the three layouts.

kinotone   <dir>/{component}.safetensors, or one such file; the metadata have `component` and `config`. An adapter in
           the folder of the transformer (`model.lora`) is merged into it.
ltx        the published file, single or in shards; the upscaler's file in the same folder.
diffusers  <dir>/{transformer, connectors, vae, audio_vae, vocoder, latent_upsampler}/, or one such folder.

An opened component (`StoredComponent`) has its configuration, and the file and key of each tensor. Opening reads
headers only. It is strict: every tensor of the component must be there in its shape, and no other.

"Our keys" are those of the component's state dict; "their keys" are those in the files (see `model.key_maps`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from model import diffusers_config, ltx_config
from model.key_maps import COMPONENTS, DIFFUSERS_FOLDERS, diffusers_names, ltx_component, ltx_names, release_of
from model.lora import Adapter, adapter_path
from model.ltx2 import CONFIG_CLASSES, build_component
from model.weight_files import Fingerprint, Header, Spec, read_header, read_tensors, shards_of, specs_of

Layout = Literal["kinotone", "ltx", "diffusers"]
Paths = str | os.PathLike | Iterable[str | os.PathLike]

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
UPSCALER_SUFFIX = "-upscaler"  # <stem>-upscaler.safetensors beside an ltx file <stem>.safetensors


@dataclass(frozen=True)
class StoredComponent:
    """One component on disk.

    Attributes:
        name: one of `COMPONENTS`.
        config: its configuration.
        specs: shape and type of each tensor, by our key.
        layout: of its files.
        adapter: adapter that `stream` merges into the tensors; None for none.
    """

    name: str
    config: Any
    specs: dict[str, Spec]
    layout: Layout
    _places: dict[Path, dict[str, str]] = field(repr=False)  # file → {their key: our key}
    _fingerprint: str | None = None
    adapter: Adapter | None = None

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (our key, CPU tensor) one at a time, in the order of the files, with the adapter merged."""
        for path, names in self._places.items():
            for key, tensor in read_tensors(path, names):
                ours = names[key]
                yield ours, tensor if self.adapter is None else self.adapter.merged(ours, tensor)

    def identity(self) -> str:
        """Return a text that differs for other weights, without reading tensors.

        This is the stored fingerprint; where none is stored, the names and sizes of the files.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        files = [*self._places, *([self.adapter.path] if self.adapter else [])]
        return ", ".join(f"{file.name} {file.stat().st_size}" for file in files)

    def fingerprint(self) -> str:
        """Return the stored fingerprint, or compute it from the tensors where none is stored."""
        if self._fingerprint is not None:
            return self._fingerprint
        fingerprint = Fingerprint(config_json(self.config))
        for key, tensor in self.stream():
            fingerprint.add(key, tensor)
        return fingerprint.hexdigest()


def config_json(config: Any) -> dict[str, Any]:
    """Convert a component's configuration to JSON values."""
    return json.loads(json.dumps(asdict(config)))


def read_config(name: str, values: Mapping[str, Any], where: str) -> Any:
    """Convert JSON values to a component's configuration; the inverse of `config_json`.

    Args:
        name: of the component.
        values: value of each field.
        where: file, for messages.

    Raises:
        ValueError: a field is unknown or does not fit; the message names it.
    """
    for kind in CONFIG_CLASSES[name]:
        known = {f.name for f in fields(kind)}
        if known.issuperset(values):
            try:
                return kind(**values)
            except TypeError as error:
                raise ValueError(f"{where}: configuration of {name}: {error}") from error
    known = {f.name for kind in CONFIG_CLASSES[name] for f in fields(kind)}
    unknown = sorted(set(values) - known) or sorted(values)
    raise ValueError(f"{where}: configuration of {name} has the unknown field {unknown[0]!r}")


def open_components(
    paths: Paths, layout: Layout | None = None, components: Iterable[str] | None = None
) -> list[StoredComponent]:
    """Open the components at `paths`, in the order of `COMPONENTS`.

    Args:
        paths: files or folders.
        layout: refuse other layouts; None accepts any.
        components: names of the components to open; None for all.

    Raises:
        ValueError: there are no weights, they have another layout or are of another release, a key is missing or
            unexpected, or a requested component is missing.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    found: dict[str, StoredComponent] = {}
    published: list[Path] = []
    wanted = None if components is None else set(components)
    for path in given:
        kind = detect_layout(path)
        if layout is not None and kind != layout:
            raise ValueError(f"{path}: this is the {kind} layout, not {layout}")
        if kind == "ltx":
            published.append(path)
            continue
        for part in (_open_kinotone if kind == "kinotone" else _open_diffusers)(path, wanted):
            _add(found, part, path)
    if published:
        for part in _open_ltx(published, wanted):
            _add(found, part, published[0])
    if absent := sorted((wanted or set()) - found.keys()):
        there = ", ".join(part.name for part in open_components(given, layout)) or "nothing"
        raise ValueError(f"{', '.join(map(str, given))}: no {absent[0]} here; found {there}")
    return [found[name] for name in COMPONENTS if name in found]


def _add(found: dict[str, StoredComponent], part: StoredComponent, path: Path) -> None:
    """Add a component to `found`; raises ValueError where it has one of that name. `path` is for the message."""
    if part.name in found:
        raise ValueError(f"{path}: a second {part.name}; give each component once")
    found[part.name] = part


def detect_layout(path: Path) -> Layout:
    """Return the layout of the weights at `path`; raises ValueError where there are none."""
    if path.is_dir():
        if any((path / f"{name}.safetensors").is_file() for name in COMPONENTS):
            return "kinotone"
        if _diffusers_class(path) or any(_diffusers_class(path / name) for name in DIFFUSERS_FOLDERS.values()):
            return "diffusers"
        shards_of(path)
        return "ltx"
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file or folder")
    if path.name.startswith("diffusion_pytorch_model") and _diffusers_class(path.parent):
        return "diffusers"
    if path.suffix == ".json":
        return "ltx"
    return "kinotone" if "component" in read_header(path).metadata else "ltx"


def _diffusers_class(folder: Path) -> str | None:
    """Return the diffusers class that a folder's config.json names; None without such a file.

    Raises ValueError where the file is not JSON.
    """
    try:
        return json.loads((folder / "config.json").read_text()).get("_class_name")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: not a configuration ({error})") from error


# ---- kinotone


def _open_kinotone(path: Path, wanted: set[str] | None) -> Iterator[StoredComponent]:
    """Yield the components of a kinotone file or folder whose names are in `wanted`; None for all."""
    files = [path] if path.is_file() else [path / f"{name}.safetensors" for name in COMPONENTS]
    for file in files:
        if not file.is_file():
            continue
        header = read_header(file)
        name = header.metadata.get("component")
        if name not in COMPONENTS or (path.is_dir() and file.stem != name):
            raise ValueError(f"{file}: its metadata name the component {name!r}; expected {file.stem!r}")
        if wanted is not None and name not in wanted:
            continue
        config = read_config(name, _json(header, "config", file), str(file))
        places = {file: {key: key for key in header.specs}}
        part = _check(name, config, places, header.specs, "kinotone", header.metadata.get("fingerprint"))
        if name == "transformer" and (beside := adapter_path(file)).is_file():
            adapter = Adapter.open(beside, part.specs, part.fingerprint)
            part = replace(part, adapter=adapter, _fingerprint=None)
        yield part


# ---- ltx


def _open_ltx(paths: list[Path], wanted: set[str] | None) -> Iterator[StoredComponent]:
    """Yield the components of ltx files, shards or folders whose names are in `wanted`; None for all."""
    files = [file for path in paths for file in shards_of(path)]
    for file in list(files):
        beside = file.with_name(f"{file.stem}{UPSCALER_SUFFIX}.safetensors")
        if beside.is_file() and beside not in files:
            files.append(beside)
    headers = {file: read_header(file) for file in files}
    sections: dict[str, Any] = {}
    fingerprints: dict[str, str] = {}
    for file, header in list(headers.items()):
        section = _json(header, "config", file)
        if "spatial_upsample" in section:
            del headers[file]
            if wanted is None or "upscaler" in wanted:
                config = ltx_config.upscaler_from_ltx(section)
                places = {file: {key: key for key in header.specs}}
                yield _check(
                    "upscaler", config, places, header.specs, "ltx", _json(header, "fingerprint", file).get("upscaler")
                )
        else:
            sections |= section
            fingerprints |= _json(header, "fingerprint", file)
    if not headers:
        return
    if not sections:
        raise ValueError(f"{files[0]}: no `config` in the metadata; a published LTX-2 file carries its configuration")
    keys: dict[str, dict[Path, list[str]]] = {}
    specs: dict[str, Spec] = {}
    for file, header in headers.items():
        for key, spec in header.specs.items():
            if key in specs:
                raise ValueError(f"{file}: {key!r} is in another shard too")
            specs[key] = spec
            component = ltx_component(key)
            if component is not None and (wanted is None or component in wanted):
                keys.setdefault(component, {}).setdefault(file, []).append(key)
    configs = ltx_config.from_ltx(sections, specs, keys)
    for name, by_file in keys.items():
        names = _theirs_to_ours(name, configs[name], by_file, ltx_names)
        places = {file: {key: names.get(key, key) for key in found} for file, found in by_file.items()}
        our_specs = {names.get(key, key): specs[key] for found in by_file.values() for key in found}
        yield _check(name, configs[name], places, our_specs, "ltx", fingerprints.get(name))


def _json(header: Header, entry: str, file: Path) -> dict[str, Any]:
    """Return the JSON entry `entry` of a header's metadata; {} where there is none.

    Raises ValueError, naming `file`, where it is not JSON.
    """
    try:
        return json.loads(header.metadata.get(entry, "{}"))
    except ValueError as error:
        raise ValueError(f"{file}: `{entry}` in the metadata is not JSON ({error})") from error


# ---- diffusers


def _open_diffusers(path: Path, wanted: set[str] | None) -> Iterator[StoredComponent]:
    """Yield the components of a diffusers folder, or of one component's folder, that are in `wanted`; None for all."""
    if path.is_file():
        path = path.parent
    folders = [path] if _diffusers_class(path) else [path / name for name in DIFFUSERS_FOLDERS.values()]
    for folder in folders:
        kind = _diffusers_class(folder)
        if kind is None:
            continue
        name = diffusers_config.component_of(kind, folder)
        if wanted is not None and name not in wanted:
            continue
        config = diffusers_config.from_diffusers(name, json.loads((folder / "config.json").read_text()))
        headers = {file: read_header(file) for file in shards_of(folder)}
        names = _theirs_to_ours(name, config, headers, diffusers_names)
        places = {file: {key: names.get(key, key) for key in header.specs} for file, header in headers.items()}
        specs = {names.get(key, key): spec for header in headers.values() for key, spec in header.specs.items()}
        fingerprints = [h.metadata["fingerprint"] for h in headers.values() if "fingerprint" in h.metadata]
        yield _check(
            name, config, places, specs, "diffusers", fingerprints[0] if len(headers) == 1 and fingerprints else None
        )


# ---- checks


@lru_cache(maxsize=32)
def expected_specs(config: Any) -> dict[str, Spec]:
    """Return shape and type of each tensor that a component must have, by key, from a build on the meta device."""
    return specs_of(build_component(config, "meta").state_dict())


def _theirs_to_ours(name: str, config: Any, found: Iterable[Any], rename: Any) -> dict[str, str]:
    """Return {their key: our key} for the component; `rename` is `ltx_names` or `diffusers_names`."""
    return {theirs: ours for ours, theirs in rename(name, expected_specs(config)).items()}


def _check(
    name: str,
    config: Any,
    places: dict[Path, dict[str, str]],
    specs: dict[str, Spec],
    layout: Layout,
    fingerprint: str | None,
) -> StoredComponent:
    """Check the tensors against the configuration (see `check_keys`); return the component. `specs` has our keys."""
    check_keys(name, expected_specs(config), specs, ", ".join(map(str, places)))
    return StoredComponent(name, config, specs, layout, places, fingerprint)


def check_keys(name: str, expected: Mapping[str, Spec], found: Mapping[str, Spec], where: str) -> None:
    """Check keys and shapes of a component's tensors.

    Args:
        name: of the component, for messages.
        expected: specs that the configuration needs, by key.
        found: specs of the file, by key.
        where: file, for messages.

    Raises:
        ValueError: a key is missing or unexpected, or has another shape; the message names it, and its release if it
            is specific to one.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        has, wants = release_of(found), release_of(expected)
        other = f"; these are weights of LTX-{has}, the configuration is LTX-{wants}'s" if has and wants != has else ""
        if not other and wants and has is None and missing:
            other = f"; an LTX-{wants} {name} has it"
        problems = [f"missing key {missing[0]!r}"] if missing else []
        problems += [f"unexpected key {extra[0]!r}"] if extra else []
        counts = f" ({len(missing)} missing, {len(extra)} unexpected in all)" if len(missing) + len(extra) > 1 else ""
        raise ValueError(f"{where}: {name}: {' and '.join(problems)}{counts}{other}")
    for key, spec in expected.items():
        if found[key].shape != spec.shape:
            raise ValueError(f"{where}: {name}: {key!r} has shape {found[key].shape}; expected {spec.shape}")
