"""Weights: saved and loaded in three layouts, tensor by tensor, safetensors only.

- `kinotone`: a **model folder**, `<dir>/{component}.safetensors`, each with its configuration and a fingerprint (hash
  of configuration and tensors) in the metadata. The text encoder is no part of it.
- `ltx`: the published single file of LTX-2 (2.0 and 2.3), the upscaler in `<stem>-upscaler.safetensors` beside it.
- `diffusers`: a folder per part, config.json and diffusion_pytorch_model.safetensors.

Strict both ways: a missing or superfluous key, another shape, another release are a ValueError that names it. No file
is ever whole in memory: files are written and read one tensor at a time, and `stream` hands the tensors out one by one,
under our names, to whoever fills partitions with them.

Sources: the published checkpoints' keys and metadata, as ltx-core and diffusers read them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from model import diffusers_config, ltx_config
from model.key_maps import DIFFUSERS_FOLDERS, diffusers_names, ltx_names
from model.layouts import (
    DIFFUSERS_FILE,
    UPSCALER_SUFFIX,
    Layout,
    Paths,
    check_keys,
    config_json,
    expected_specs,
    open_components,
)
from model.ltx2 import LTX2, build_component, check_components, component_of
from model.vocoder import VocoderWithBWEConfig
from model.weight_files import FileWriter, Fingerprint, Spec, specs_of

__all__ = [
    "Component",
    "configs",
    "convert",
    "fingerprint",
    "load",
    "load_component",
    "load_into",
    "projection_fingerprint",
    "save",
    "save_components",
    "stream",
]


@dataclass(frozen=True)
class Component:
    """A part to save: what it is, what its tensors are, and a way to get them one by one.

    `stream()` yields (key, tensor) in any order, each of `specs` once; it may gather a tensor from partitions.
    """

    name: str
    config: Any
    specs: dict[str, Spec]
    stream: Callable[[], Iterable[tuple[str, Tensor]]]


# ---- save


def save(obj: LTX2 | nn.Module, path: str | Path, layout: Layout = "kinotone") -> None:
    """Write a model, or a single part of one, in a layout.

    Args:
        path: kinotone and diffusers: a folder (of a single part, kinotone: also a .safetensors file); parts that lie
            there already and are not in `obj` stay. ltx: a .safetensors file.

    Raises:
        ValueError: `obj` is no part of LTX-2, the published classes have no room for its shape, or `path` is not of
            the layout's kind.
    """
    modules = obj.components if isinstance(obj, LTX2) else {component_of(obj): obj}
    save_components([_part(name, module) for name, module in modules.items()], path, layout)


def _part(name: str, module: nn.Module) -> Component:
    tensors = module.state_dict()
    return Component(name, module.config, specs_of(tensors), lambda: tensors.items())


def save_components(components: Iterable[Component], path: str | Path, layout: Layout = "kinotone") -> None:
    """`save` for tensors that come one by one, as from ZeRO-3 partitions."""
    components, path = list(components), Path(path)
    for part in components:
        check_keys(part.name, expected_specs(part.config), part.specs, "what is to be saved")
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; choose {', '.join(get_args(Layout))}")
    {"kinotone": _save_kinotone, "ltx": _save_ltx, "diffusers": _save_diffusers}[layout](components, path)


def convert(
    paths: Paths,
    output: str | Path,
    layout: Layout,
    components: Iterable[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """From one layout to another, tensor by tensor, without building the model.

    Args:
        progress: called with (part, tensors written, tensors of the part).
    """
    found = [Component(p.name, p.config, p.specs, p.stream) for p in open_components(paths, components=components)]
    save_components([_followed(part, progress) for part in found] if progress else found, output, layout)


def _followed(part: Component, progress: Callable[[str, int, int], None]) -> Component:
    def stream() -> Iterator[tuple[str, Tensor]]:
        for count, item in enumerate(part.stream(), start=1):
            yield item
            progress(part.name, count, len(part.specs))

    return replace(part, stream=stream)


def _save_kinotone(components: list[Component], path: Path) -> None:
    single = path.suffix == ".safetensors"
    if single and len(components) != 1:
        raise ValueError(f"{path}: {len(components)} parts go into a folder, not into one file; drop the .safetensors")
    for part in components:
        config = json.dumps(config_json(part.config))
        metadata = {"format": "pt", "component": part.name, "config": config, "fingerprint": Fingerprint.PLACEHOLDER}
        with FileWriter(path if single else path / f"{part.name}.safetensors", part.specs, metadata) as file:
            file.finish({"fingerprint": _write(file, part, {key: key for key in part.specs})})


def _save_ltx(components: list[Component], path: Path) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the ltx layout is one file; give a name that ends in .safetensors")
    main = [part for part in components if part.name != "upscaler"]
    if main:
        sections = ltx_config.to_ltx({part.name: part.config for part in main})
        version = ltx_config.version({part.name: part.config for part in main})
        _write_ltx_file(main, path, sections, {"model_version": version})
    for part in components:
        if part.name == "upscaler":
            beside = path.with_name(f"{path.stem}{UPSCALER_SUFFIX}.safetensors") if main else path
            _write_ltx_file([part], beside, ltx_config.upscaler_to_ltx(part.config), {})


def _write_ltx_file(components: list[Component], path: Path, config: dict[str, Any], metadata: dict[str, str]) -> None:
    names = {part.name: ltx_names(part.name, part.specs) for part in components}
    specs = {names[part.name][key]: spec for part in components for key, spec in part.specs.items()}
    fingerprints = {part.name: Fingerprint.PLACEHOLDER for part in components}
    metadata = {"format": "pt", "config": json.dumps(config), **metadata, "fingerprint": json.dumps(fingerprints)}
    with FileWriter(path, specs, metadata) as file:
        for part in components:
            fingerprints[part.name] = _write(file, part, names[part.name])
        file.finish({"fingerprint": json.dumps(fingerprints)})


def _save_diffusers(components: list[Component], path: Path) -> None:
    sections = {part.name: diffusers_config.to_diffusers(part.name, part.config) for part in components}
    for part in components:
        folder = path / DIFFUSERS_FOLDERS[part.name]
        names = diffusers_names(part.name, part.specs)
        specs = {names[key]: spec for key, spec in part.specs.items()}
        with FileWriter(
            folder / DIFFUSERS_FILE, specs, {"format": "pt", "fingerprint": Fingerprint.PLACEHOLDER}
        ) as file:
            file.finish({"fingerprint": _write(file, part, names)})
        (folder / "config.json").write_text(json.dumps(sections[part.name], indent=2) + "\n")


def _write(file: FileWriter, part: Component, names: dict[str, str]) -> str:
    """Write a part's tensors under other names; its fingerprint."""
    fingerprint = Fingerprint(config_json(part.config))
    for key, tensor in part.stream():
        fingerprint.add(key, tensor)
        file.write(names[key], tensor)
    return fingerprint.hexdigest()


# ---- load


def load(
    paths: Paths,
    layout: Layout | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    components: Iterable[str] | None = None,
) -> LTX2:
    """A model from a folder or file of any layout, or from several (each part once).

    Args:
        layout: refuse another one; None: whichever it is.
        dtype: of the parameters; None: as stored. Buffers (statistics, filters) and the 48 kHz vocoder come in float32.
        components: the parts to load (None: all that are there).

    Raises:
        ValueError: see the module's head; also where a part that is asked for is not there.
    """
    names = None if components is None else check_components(components)
    found = open_components(paths, layout, names)
    return LTX2({part.name: _materialize(part.config, part.stream(), torch.device(device), dtype) for part in found})


def load_component(
    path: Paths, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """One part, as `load` does."""
    return getattr(load(path, device=device, dtype=dtype, components=[name]), name)


def load_into(obj: LTX2 | nn.Module, paths: Paths) -> None:
    """Fill a model, or a part, in place; its device and types stay.

    Raises:
        ValueError: as `load`; also where the stored configuration is another than the model's, naming the entry.
    """
    modules = obj.components if isinstance(obj, LTX2) else {component_of(obj): obj}
    for part in open_components(paths, components=modules):
        module = modules[part.name]
        check_keys(part.name, specs_of(module.state_dict()), part.specs, str(paths))
        ours, theirs = config_json(module.config), config_json(part.config)
        for entry in ours.keys() | theirs.keys():
            if ours.get(entry) != theirs.get(entry):
                raise ValueError(
                    f"{paths}: {part.name}.{entry} is {theirs.get(entry)!r} in the file, "
                    f"{ours.get(entry)!r} in the model"
                )
        targets = module.state_dict()
        with torch.no_grad():
            for key, tensor in part.stream():
                targets[key].copy_(tensor)


def stream(paths: Paths, component: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(key, CPU tensor) one at a time, from any layout, under our names.

    With `component`, the keys of that part's state dict; without, those of the whole model's ("transformer.…").
    """
    for part in open_components(paths, components=None if component is None else [component]):
        for key, tensor in part.stream():
            yield (key if component else f"{part.name}.{key}"), tensor


def configs(paths: Paths) -> dict[str, Any]:
    """The configuration of each part at `paths`; reads headers alone."""
    return {part.name: part.config for part in open_components(paths)}


def fingerprint(paths: Paths, component: str | None = None) -> str:
    """SHA-256 of configuration and tensors of a part, or of all parts at `paths`; the same in every layout."""
    components = open_components(paths, components=None if component is None else [component])
    if len(components) == 1:
        return components[0].fingerprint()
    return hashlib.sha256("\n".join(f"{part.name} {part.fingerprint()}" for part in components).encode()).hexdigest()


def projection_fingerprint(paths: Paths) -> str:
    """SHA-256 of the feature projection W alone, the half of a text conditioner that stored features come from."""
    own = Fingerprint({})
    for key, tensor in stream(paths, "text_conditioner"):
        if key.startswith("text_embedding_projection."):
            own.add(key, tensor)
    return own.hexdigest()


def _materialize(
    config: Any, tensors: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """A part from its tensors, none of which is allocated before it is read."""
    module = build_component(config, "meta")
    parameters = dict(module.named_parameters())
    if isinstance(config, VocoderWithBWEConfig):
        dtype = torch.float32
    for key, tensor in tensors:
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = (dtype or tensor.dtype) if key in parameters else torch.float32
        # A copy, so that no part of the file stays mapped.
        value = torch.empty(tensor.shape, dtype=wanted, device=device).copy_(tensor)
        owner_name, _, name = key.rpartition(".")
        owner = module.get_submodule(owner_name)
        if key in parameters:
            owner.register_parameter(name, nn.Parameter(value, requires_grad=parameters[key].requires_grad))
        else:
            owner.register_buffer(name, value)
    _fill_computed_buffers(module, device)
    return module


def _fill_computed_buffers(module: nn.Module, device: torch.device) -> None:
    """Buffers that no file holds are computed by their module's `reset`."""
    for owner in module.modules():
        missing = [name for name, buffer in owner.named_buffers(recurse=False) if buffer.is_meta]
        if missing and device.type != "meta":
            reset = getattr(owner, "reset", None)
            assert reset is not None, f"{type(owner).__name__} must have `reset`, which computes {missing}"
            for name in missing:
                setattr(owner, name, torch.empty_like(getattr(owner, name), device=device))
            with torch.no_grad():
                reset()
