"""Save and load weights in three layouts, tensor by tensor, in safetensors files only.

- `kinotone`: a **model folder**, `<dir>/{component}.safetensors`, each with its configuration and a fingerprint (hash
  of configuration and tensors) in the metadata. The text encoder is not in it.
- `ltx`: the published single file of LTX-2 (2.0 and 2.3); the upscaler is in `<stem>-upscaler.safetensors` in
  the same folder.
- `diffusers`: a folder per component with config.json and diffusion_pytorch_model.safetensors.

Both directions are strict: a key that is missing or unexpected, another shape or another release raises a ValueError
that names it. Files are written and read one tensor at a time, so no file is ever in memory completely. `stream`
yields the tensors one by one under our names, for callers that fill partitions with them (ZeRO-3).

Source: keys and metadata of the published checkpoints, as ltx-core and diffusers read them.
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
    """A component to save.

    Attributes:
        name: one of `COMPONENTS`.
        config: its configuration.
        specs: shape and type of each tensor, by the keys of the component's state dict.
        stream: function that yields (key, tensor) in any order, each key of `specs` once. It may gather a tensor from
            ZeRO-3 partitions when its turn comes.
    """

    name: str
    config: Any
    specs: dict[str, Spec]
    stream: Callable[[], Iterable[tuple[str, Tensor]]]


# ---- save


def save(obj: LTX2 | nn.Module, path: str | Path, layout: Layout = "kinotone") -> None:
    """Write a model, or a single component, in a layout.

    Args:
        obj: model or component.
        path: for kinotone and diffusers a folder, where components that are not in `obj` stay; for kinotone and a
            single component also a .safetensors file; for ltx a .safetensors file.
        layout: of the files.

    Raises:
        ValueError: `obj` is no component of LTX-2, the published classes cannot take its shape, or `path` does not fit
            the layout.
    """
    modules = obj.components if isinstance(obj, LTX2) else {component_of(obj): obj}
    save_components([_part(name, module) for name, module in modules.items()], path, layout)


def _part(name: str, module: nn.Module) -> Component:
    """Return the module as a component to save."""
    tensors = module.state_dict()
    return Component(name, module.config, specs_of(tensors), lambda: tensors.items())


def save_components(components: Iterable[Component], path: str | Path, layout: Layout = "kinotone") -> None:
    """Write components in a layout, reading their tensors one by one from `Component.stream`.

    Path, layout and errors are those of `save`, which calls this for modules.
    """
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
    """Convert weights to another layout, tensor by tensor, without building the model.

    Args:
        paths: files or folders to read, in any layout.
        output: file or folder to write (see `save`).
        layout: of the output.
        components: names of the components to convert; None for all.
        progress: called after each tensor with the component, its tensors written and its number of tensors.

    Raises:
        ValueError: as `load` and `save`.
    """
    found = [Component(p.name, p.config, p.specs, p.stream) for p in open_components(paths, components=components)]
    save_components([_with_progress(part, progress) for part in found] if progress else found, output, layout)


def _with_progress(part: Component, progress: Callable[[str, int, int], None]) -> Component:
    """Return a component whose `stream` calls `progress` after each tensor (see `convert`)."""

    def stream() -> Iterator[tuple[str, Tensor]]:
        for count, item in enumerate(part.stream(), start=1):
            yield item
            progress(part.name, count, len(part.specs))

    return replace(part, stream=stream)


def _save_kinotone(components: list[Component], path: Path) -> None:
    """Write each component to its file in the folder `path`, or a single one to the file `path`."""
    single = path.suffix == ".safetensors"
    if single and len(components) != 1:
        raise ValueError(
            f"{path}: {len(components)} components go into a folder, not into one file; drop the .safetensors"
        )
    for part in components:
        config = json.dumps(config_json(part.config))
        metadata = {"format": "pt", "component": part.name, "config": config, "fingerprint": Fingerprint.PLACEHOLDER}
        with FileWriter(path if single else path / f"{part.name}.safetensors", part.specs, metadata) as file:
            file.finish({"fingerprint": _write(file, part, {key: key for key in part.specs})})


def _save_ltx(components: list[Component], path: Path) -> None:
    """Write the upscaler to a separate file (to `path` where it is alone), and all other components to `path`."""
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
    """Write components to one published file, with `config` (as JSON) and `metadata` in its metadata."""
    names = {part.name: ltx_names(part.name, part.specs) for part in components}
    specs = {names[part.name][key]: spec for part in components for key, spec in part.specs.items()}
    fingerprints = {part.name: Fingerprint.PLACEHOLDER for part in components}
    metadata = {"format": "pt", "config": json.dumps(config), **metadata, "fingerprint": json.dumps(fingerprints)}
    with FileWriter(path, specs, metadata) as file:
        for part in components:
            fingerprints[part.name] = _write(file, part, names[part.name])
        file.finish({"fingerprint": json.dumps(fingerprints)})


def _save_diffusers(components: list[Component], path: Path) -> None:
    """Write each component to its folder in `path`: config.json and one weight file."""
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
    """Write all tensors of a component to an open file.

    Args:
        file: to write to.
        part: the component.
        names: {key of the component: key in the file}.

    Returns:
        The fingerprint of the component.
    """
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
    """Load a model from files or folders of any layout.

    Args:
        paths: one path or several, with each component once.
        layout: refuse other layouts; None accepts any.
        device: of the tensors.
        dtype: of the parameters; None for the stored type. Buffers (statistics, filters) and the 48 kHz vocoder are
            always float32.
        components: names of the components to load; None for all that are there.

    Raises:
        ValueError: the weights are not strictly those of LTX-2 (see the module docstring), or a requested component
            is missing.
    """
    names = None if components is None else check_components(components)
    found = open_components(paths, layout, names)
    return LTX2({part.name: _materialize(part.config, part.stream(), torch.device(device), dtype) for part in found})


def load_component(
    path: Paths, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the component `name`; the other arguments and the errors are those of `load`."""
    return getattr(load(path, device=device, dtype=dtype, components=[name]), name)


def load_into(obj: LTX2 | nn.Module, paths: Paths) -> None:
    """Copy weights into a model or a component, whose device and types do not change.

    Args:
        obj: model or component to fill.
        paths: one path or several, in any layout.

    Raises:
        ValueError: as `load`; or the stored configuration differs from the model's; the message names the entry.
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
    """Yield (key, CPU tensor) one at a time, from any layout, under our names.

    Args:
        paths: files or folders.
        component: yield this component, with the keys of its state dict; None yields all, with the keys of the
            model's state dict ("transformer.…").
    """
    for part in open_components(paths, components=None if component is None else [component]):
        for key, tensor in part.stream():
            yield (key if component else f"{part.name}.{key}"), tensor


def configs(paths: Paths) -> dict[str, Any]:
    """Return the configuration of each component at `paths`. Reads headers only."""
    return {part.name: part.config for part in open_components(paths)}


def fingerprint(paths: Paths, component: str | None = None) -> str:
    """Return a SHA-256 of configuration and tensors, of one component or of all at `paths`; equal in every layout."""
    components = open_components(paths, components=None if component is None else [component])
    if len(components) == 1:
        return components[0].fingerprint()
    return hashlib.sha256("\n".join(f"{part.name} {part.fingerprint()}" for part in components).encode()).hexdigest()


def projection_fingerprint(paths: Paths) -> str:
    """Return the SHA-256 of the tensors of the feature projection of the text conditioner.

    Of the tensors of this model, stored text features depend on these only.
    """
    digest = Fingerprint({})
    for key, tensor in stream(paths, "text_conditioner"):
        if key.startswith("text_embedding_projection."):
            digest.add(key, tensor)
    return digest.hexdigest()


def _materialize(
    config: Any, tensors: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """Build a component with the given tensors, allocating each one only when it is read.

    Args:
        config: of the component.
        tensors: (key, tensor) for each key of the state dict.
        device: of the tensors.
        dtype: as in `load`.
    """
    module = build_component(config, "meta")
    parameters = dict(module.named_parameters())
    if isinstance(config, VocoderWithBWEConfig):
        dtype = torch.float32
    for key, tensor in tensors:
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = (dtype or tensor.dtype) if key in parameters else torch.float32
        # Copy, so that the file does not stay mapped into memory.
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
    """Allocate the buffers that no file contains, and fill them by the `reset` of their module.

    These are the buffers that are still on the meta device; does nothing where `device` is the meta device.
    """
    for owner in module.modules():
        missing = [name for name, buffer in owner.named_buffers(recurse=False) if buffer.is_meta]
        if missing and device.type != "meta":
            reset = getattr(owner, "reset", None)
            assert reset is not None, f"{type(owner).__name__} must have `reset`, which computes {missing}"
            for name in missing:
                setattr(owner, name, torch.empty_like(getattr(owner, name), device=device))
            with torch.no_grad():
                reset()
