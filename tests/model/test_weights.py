"""Weights: three layouts, bit-exact round trips, strictness, streaming.

test_weights_oracles.py loads the files with the published classes.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import model
from model import weights
from model.key_maps import ltx_names
from model.layouts import Layout, expected_specs
from model.ltx_config import to_ltx
from model.weight_files import FileWriter, read_header, specs_of
from tests.model.sizes import random_model, tiny_2_0, tiny_2_3

CONFIGS = {"2.0": tiny_2_0(), "2.3": tiny_2_3()}
LAYOUTS: list[Layout] = ["kinotone", "ltx", "diffusers"]


def place(folder: Path, layout: Layout) -> Path:
    return folder / "model.safetensors" if layout == "ltx" else folder / "model"


def assert_same(first: nn.Module, second: nn.Module) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def release(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def ltx2(release: str) -> model.LTX2:
    return random_model(CONFIGS[release])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_bit_exact(tmp_path: Path, ltx2: model.LTX2, layout: Layout) -> None:
    path = place(tmp_path, layout)
    weights.save(ltx2, path, layout)
    loaded = weights.load(path)
    assert_same(ltx2, loaded)
    assert loaded.configs == ltx2.configs
    assert weights.configs(path) == ltx2.configs
    with torch.no_grad():  # buffers that no file holds are computed
        mel = torch.randn(1, 2, 4, 64)
        assert torch.equal(loaded.vocoder(mel), ltx2.vocoder(mel))
    with pytest.raises(ValueError, match=f"this is the {layout} layout, not"):
        weights.load(path, layout=next(other for other in LAYOUTS if other != layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_of_bfloat16(tmp_path: Path, layout: Layout) -> None:
    ltx2 = model.build(CONFIGS["2.0"], dtype=torch.bfloat16, components=["transformer", "video_vae"])
    path = place(tmp_path, layout)
    weights.save(ltx2, path, layout)
    loaded = weights.load(path)
    assert_same(ltx2, loaded)
    assert loaded.vocoder is None
    wide = weights.load(path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_convert_passes_through_all_layouts(tmp_path: Path, ltx2: model.LTX2) -> None:
    previous = tmp_path / "start"
    weights.save(ltx2, previous)
    prints = {weights.fingerprint(previous)}
    for step, layout in enumerate(["ltx", "diffusers", "kinotone"]):
        path = place(tmp_path / str(step), layout)  # pyright: ignore[reportArgumentType]
        weights.convert(previous, path, layout)  # pyright: ignore[reportArgumentType]
        prints.add(weights.fingerprint(path))
        previous = path
    assert len(prints) == 1
    for name in ltx2.components:
        first, last = tmp_path / "start" / f"{name}.safetensors", previous / f"{name}.safetensors"
        assert first.read_bytes() == last.read_bytes()


def test_fingerprint_tells_tensors_and_configuration(tmp_path: Path) -> None:
    ltx2 = model.build("tiny", components=["transformer"])
    weights.save(ltx2.transformer, tmp_path / "a.safetensors")
    with torch.no_grad():
        ltx2.transformer.proj_out.bias[0] += 1
    weights.save(ltx2.transformer, tmp_path / "b.safetensors")
    other = model.build_component(replace(ltx2.transformer.config, av_timestep="own"))
    other.load_state_dict(ltx2.transformer.state_dict())
    weights.save(other, tmp_path / "c.safetensors")
    prints = [weights.fingerprint(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert len(set(prints)) == 3
    assert all(len(value) == 64 for value in prints)
    assert weights.fingerprint(tmp_path / "a.safetensors", "transformer") == prints[0]


def test_single_parts(tmp_path: Path) -> None:
    ltx2 = random_model(CONFIGS["2.0"])
    weights.save(ltx2.video_vae, tmp_path)
    weights.save(ltx2.vocoder, tmp_path)  # components that are there already stay
    assert sorted(path.name for path in tmp_path.iterdir()) == ["video_vae.safetensors", "vocoder.safetensors"]
    assert_same(weights.load_component(tmp_path, "vocoder"), ltx2.vocoder)
    assert list(weights.load(tmp_path).components) == ["video_vae", "vocoder"]
    two = weights.load([tmp_path / "video_vae.safetensors", tmp_path / "vocoder.safetensors"])
    assert_same(two.video_vae, ltx2.video_vae)
    with pytest.raises(ValueError, match="no transformer here; found video_vae, vocoder"):
        weights.load(tmp_path, components=["transformer", "vocoder"])
    with pytest.raises(ValueError, match="a second vocoder"):
        weights.load([tmp_path, tmp_path / "vocoder.safetensors"])
    with pytest.raises(ValueError, match="Linear is not a component of LTX-2"):
        weights.save(nn.Linear(1, 1), tmp_path)


def test_stream_names_tensors_as_we_do(tmp_path: Path, ltx2: model.LTX2) -> None:
    weights.save(ltx2, tmp_path / "m.safetensors", "ltx")
    whole = dict(weights.stream(tmp_path / "m.safetensors"))
    assert whole.keys() == ltx2.state_dict().keys()
    part = dict(weights.stream(tmp_path / "m.safetensors", "text_conditioner"))
    assert part.keys() == ltx2.text_conditioner.state_dict().keys()
    assert torch.equal(
        part["video_embeddings_connector.learnable_registers"],
        ltx2.text_conditioner.video_embeddings_connector.learnable_registers,
    )


def test_save_parts_takes_tensors_as_they_come(tmp_path: Path) -> None:
    vocoder = random_model(CONFIGS["2.0"]).vocoder
    tensors = vocoder.state_dict()
    gathered: list[str] = []

    def gather():  # as ZeRO-3 does: one full tensor at a time, in another order
        for key in reversed(list(tensors)):
            gathered.append(key)
            yield key, tensors[key].clone()

    part = weights.Component("vocoder", vocoder.config, specs_of(tensors), gather)
    weights.save_components([part], tmp_path)
    assert len(gathered) == len(tensors)
    assert_same(weights.load_component(tmp_path, "vocoder"), vocoder)


def test_load_into_keeps_device_and_type(tmp_path: Path) -> None:
    source = random_model(CONFIGS["2.0"])
    weights.save(source, tmp_path)
    target = model.build(CONFIGS["2.0"], dtype=torch.bfloat16, components=["vocoder"])
    weights.load_into(target, tmp_path)
    key = "vocoder.conv_pre.weight"
    assert target.state_dict()[key].dtype == torch.bfloat16
    assert torch.equal(target.state_dict()[key], source.state_dict()[key].bfloat16())
    other = model.build_component(replace(CONFIGS["2.0"].transformer, num_attention_heads=12, attention_head_dim=16))
    with pytest.raises(
        ValueError, match=r"transformer\.(num_attention_heads is 6|attention_head_dim is 32) in the file"
    ):
        weights.load_into(other, tmp_path)
    later = model.build_component(CONFIGS["2.3"].transformer)
    with pytest.raises(ValueError, match=r"missing key 'audio_prompt_adaln_single.*weights of LTX-2.0.*is LTX-2.3's"):
        weights.load_into(later, tmp_path)


# ---- sharded


def shard(path: Path, pattern: str, count: int) -> None:
    """Split a file as Hugging Face does for large models: several files and an index."""
    header, tensors = read_header(path), load_file(path)
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = pattern.format(number + 1, count)
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, path.with_name(name), header.metadata if number == 0 else {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def test_sharded_diffusers_folder(tmp_path: Path) -> None:
    ltx2 = random_model(CONFIGS["2.0"])
    weights.save(ltx2, tmp_path, "diffusers")
    shard(
        tmp_path / "transformer" / "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model-{:05d}-of-{:05d}.safetensors",
        3,
    )
    loaded = weights.load(tmp_path)
    assert_same(loaded, ltx2)
    assert weights.fingerprint(tmp_path) == weights.fingerprint(_saved(ltx2, tmp_path / "again"))
    (tmp_path / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00003.*listed in .*index\.json but missing"):
        weights.load(tmp_path)


def _saved(ltx2: model.LTX2, path: Path) -> Path:
    weights.save(ltx2, path)
    return path


def test_sharded_published_file(tmp_path: Path) -> None:
    ltx2 = random_model(CONFIGS["2.3"])
    weights.save(ltx2, tmp_path / "m.safetensors", "ltx")
    shard(tmp_path / "m.safetensors", "m-{}-of-{}.safetensors", 2)
    assert_same(weights.load([tmp_path / "m.safetensors.index.json", tmp_path / "m-upscaler.safetensors"]), ltx2)
    shards = [tmp_path / "m-1-of-2.safetensors", tmp_path / "m-2-of-2.safetensors"]
    assert_same(weights.load_component(shards, "transformer"), ltx2.transformer)
    with pytest.raises(ValueError, match="missing key"):
        weights.load(shards[:1])


# ---- bad input


def rewrite(path: Path, *, drop: str = "", add: str = "", metadata: dict[str, str] | None = None) -> None:
    header, tensors = read_header(path), load_file(path)
    tensors.pop(drop, None)
    if add:
        tensors[add] = torch.zeros(2)
    save_file(tensors, path, header.metadata if metadata is None else metadata)


@pytest.mark.parametrize(
    ("layout", "file", "key"),
    [
        ("kinotone", "model/transformer.safetensors", "patchify_proj.weight"),
        ("ltx", "model.safetensors", "model.diffusion_model.patchify_proj.weight"),
        ("diffusers", "model/transformer/diffusion_pytorch_model.safetensors", "proj_in.weight"),
    ],
)
def test_missing_and_superfluous_keys(tmp_path: Path, layout: Layout, file: str, key: str) -> None:
    ltx2 = model.build(CONFIGS["2.0"], components=["transformer"])
    path = place(tmp_path, layout)
    weights.save(ltx2, path, layout)
    rewrite(tmp_path / file, drop=key)
    with pytest.raises(ValueError, match=r"transformer: missing key 'patchify_proj\.weight'"):
        weights.load(path)
    weights.save(ltx2, path, layout)
    extra = key.replace(".weight", ".scale")
    rewrite(tmp_path / file, add=extra)
    with pytest.raises(ValueError, match=rf"unexpected key '{extra}'"):
        weights.load(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_another_release(tmp_path: Path, layout: Layout) -> None:
    """Tensors of 2.3 with the configuration of 2.0 are refused, and the reverse."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, release in ((old, "2.0"), (new, "2.3")):
        ltx2 = model.build(CONFIGS[release], components=["transformer"])
        weights.save(ltx2, place(folder, layout), layout)
    names = {
        "kinotone": "model/transformer.safetensors",
        "ltx": "model.safetensors",
        "diffusers": "model/transformer/diffusion_pytorch_model.safetensors",
    }
    file = names[layout]
    if layout == "diffusers":
        (old / "model/transformer/config.json").rename(tmp_path / "config.json")
        (new / "model/transformer/config.json").rename(old / "model/transformer/config.json")
        (tmp_path / "config.json").rename(new / "model/transformer/config.json")
    else:
        metadata = {folder: read_header(folder / file).metadata for folder in (old, new)}
        rewrite(old / file, metadata=metadata[new])
        rewrite(new / file, metadata=metadata[old])
    with pytest.raises(ValueError, match=r"these are weights of LTX-2\.0, the configuration is LTX-2\.3's"):
        weights.load(place(old, layout))
    with pytest.raises(ValueError, match=r"these are weights of LTX-2\.3, the configuration is LTX-2\.0's"):
        weights.load(place(new, layout))


def test_other_bad_published_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    ltx2 = model.build(CONFIGS["2.0"], components=["transformer"])

    def published(**changes: str | None) -> None:
        weights.save(ltx2, path, "ltx")
        metadata = read_header(path).metadata
        config = json.loads(metadata["config"])
        config["transformer"] |= changes
        rewrite(path, metadata=metadata | {"config": json.dumps(config)})

    published(rope_type="interleaved")
    with pytest.raises(ValueError, match=r"transformer\.rope_type is 'interleaved'; only 'split' is supported"):
        weights.load(path)
    published(ff_bias=None)
    with pytest.raises(ValueError, match=r"LTX-2\.5 checkpoint; 2\.0 and 2\.3 are supported"):
        weights.load(path)
    published()
    rewrite(path, add="duration_head.linear.weight")
    with pytest.raises(ValueError, match=r"unknown key 'duration_head\.linear\.weight': it belongs to LTX-2\.5"):
        weights.load(path)
    published()
    rewrite(path, metadata={})
    with pytest.raises(ValueError, match="no `config` in the metadata"):
        weights.load(path)
    published()
    # Published beside the two statistics; no implementation uses them.
    rewrite(path, add="vae.per_channel_statistics.mean-of-stds")
    assert_same(weights.load(path), ltx2)


def test_other_shapes(tmp_path: Path) -> None:
    weights.save(model.build(CONFIGS["2.0"], components=["vocoder"]), tmp_path)
    path = tmp_path / "vocoder.safetensors"
    header, tensors = read_header(path), load_file(path)
    save_file(tensors | {"conv_post.bias": torch.zeros(3)}, path, header.metadata)
    with pytest.raises(ValueError, match=r"'conv_post\.bias' has shape \(3,\); expected \(2,\)"):
        weights.load(tmp_path)
    config = json.loads(header.metadata["config"]) | {"channel": 4}
    save_file(tensors, path, header.metadata | {"config": json.dumps(config)})
    with pytest.raises(ValueError, match="configuration of vocoder has the unknown field 'channel'"):
        weights.load(tmp_path)
    save_file(tensors, path, header.metadata | {"config": "{"})
    with pytest.raises(ValueError, match="`config` in the metadata is not JSON"):
        weights.load(tmp_path)


def test_no_weights_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such weight file or folder"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \.safetensors file in this folder"):
        weights.load(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(b"PK\x03\x04 a pickle, not tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        weights.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("part", "change", "layout", "message"),
    [
        ("audio_vae", {"base_channels": 32}, "ltx", r"audio_vae.base_channels is 32 and its token is 128 wide"),
        ("audio_vae", {"base_channels": 32}, "diffusers", r"the diffusers layout has room for models where"),
        ("text_conditioner", {"connector_num_learnable_registers": 32}, "ltx", "room for 128 only"),
        ("vocoder", {"final": "none"}, "ltx", "vocoder.final is 'none'"),
    ],
)
def test_shapes_that_a_layout_has_no_room_for(
    tmp_path: Path, part: str, change: dict[str, object], layout: Layout, message: str
) -> None:
    config = replace(getattr(CONFIGS["2.0"], part), **change)
    module = model.build_component(config)
    with pytest.raises(ValueError, match=message):
        weights.save(module, place(tmp_path, layout), layout)
    assert not list(tmp_path.rglob("*.safetensors"))
    weights.save(module, tmp_path / "own")  # the kinotone layout takes every shape
    assert weights.configs(tmp_path / "own") == {part: config}


@pytest.mark.parametrize(("preset", "keys"), [("ltx2-19b", 3_510), ("ltx2.3-22b", 4_186)])
def test_a_file_of_full_size_opens(tmp_path: Path, preset: str, keys: int) -> None:
    """Files of the released sizes are checked by their headers, without reading a tensor."""
    config = model.preset(preset)
    components = {name: getattr(config, name) for name in model.COMPONENTS if name != "upscaler"}
    entries: dict[str, object] = {"__metadata__": {"config": json.dumps(to_ltx(components))}}
    end = 0
    for name, part in components.items():
        specs = expected_specs(part)
        for ours, theirs in ltx_names(name, specs).items():
            start, end = end, end + 2 * torch.Size(specs[ours].shape).numel()
            entries[theirs] = {"dtype": "BF16", "shape": specs[ours].shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert end > 40e9  # bytes
    assert weights.configs(tmp_path / "m.safetensors") == components
    transformer = [key for key in entries if key.startswith("model.diffusion_model.") and "_connector." not in key]
    assert len(transformer) == keys


# ---- files


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2)}
    with FileWriter(tmp_path / "x.safetensors", specs_of(tensors), {}) as file:
        file.write("a", tensors["a"])
        with pytest.raises(ValueError, match=r"1 tensors were never written, e\.g\. b"):
            file.finish()
    assert not list(tmp_path.iterdir())


def test_the_file_is_the_library_s(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4).bfloat16(),
        "a": torch.randn(()),
        "transposed": torch.randn(4, 6).t(),
        "empty": torch.zeros(0, 3),
        "flags": torch.ones(3, dtype=torch.bool),
        "counts": torch.arange(5),
    }
    with FileWriter(tmp_path / "ours.safetensors", specs_of(tensors), {"k": "0"}) as file:
        for key, tensor in tensors.items():
            file.write(key, tensor)
        file.finish({"k": "1"})
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "theirs.safetensors", {"k": "1"}
    )
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


PEAK = """
import sys, resource, threading, time, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
from model import weights
from model.presets import preset
from model.layouts import expected_specs
config = replace(preset("small").transformer, num_layers=4)
specs = expected_specs(config)
size = sum(torch.Size(s.shape).numel() * 4 for s in specs.values()) / 2**20

def anonymous():                              # MiB that no file backs
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in l).split()[1]) / 1024

peak, stop = [0.0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], anonymous()); time.sleep(0.002)

start = anonymous()
threading.Thread(target=watch, daemon=True).start()
out = Path(sys.argv[1])
part = weights.Component("transformer", config, specs, lambda: ((k, torch.zeros(s.shape)) for k, s in specs.items()))
weights.save_components([part], out / "k")
weights.convert(out / "k", out / "m.safetensors", "ltx")
total = sum(t.numel() for _, t in weights.stream(out / "m.safetensors"))
assert total * 4 / 2**20 == size
streamed = peak[0] - start
loaded = weights.load(out / "m.safetensors")
print(size, streamed, peak[0] - start)
stop.set()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_model_never_stands_whole_in_memory(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    size, streamed, loaded = map(float, run.stdout.split())
    assert size > 200  # MiB
    assert streamed < 0.1 * size  # saved, converted and streamed: a tensor or two at a time
    assert loaded < 1.1 * size  # loaded: the model itself, once
