"""Network files: golden parity of what is read, and that nothing runs, crashes or is half believed in what is not."""

import copyreg
import io
import json
import os
import pickle
import pickletools
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from metrics.files import InputError
from repro import snapshots
from repro.encoders import RGBEncoder, StabilityVAEEncoder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NAMES = ["main", "guide", "uncond", "latent", "latent-guide"]


def unframed(data: bytes) -> bytes:
    """The same pickle without frames, so that strings in it can be replaced by others of another length."""
    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    return b"".join(
        data[start:end]
        for (opcode, _, start), end in zip(operations, ends, strict=True)
        if opcode.name != "FRAME"  # type: ignore[operator]
    )


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def altered(name: str, old: bytes, new: bytes) -> bytes:
    """A golden pickle with some bytes replaced."""
    data = unframed((GOLDEN / f"{name}.pkl").read_bytes())
    assert old in data
    return data.replace(old, new)


def renamed(name: str, old: str, new: str) -> bytes:
    """A golden pickle with a string replaced by another."""
    return altered(name, text(old), text(new))


def constructed(model_channels: bytes) -> bytes:
    """The golden guide with another value, as pickle instructions, for that argument of its constructor."""
    data = unframed((GOLDEN / "guide.pkl").read_bytes())
    before, _, after = data.rpartition(b"j,\x08\x00\x00K\x08")
    assert len(after) < 100
    return before + b"j,\x08\x00\x00" + model_channels + after


def write(folder: Path, data: bytes, name: str = "net.pkl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", ["pkl", "safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_published_networks_give_the_golden_outputs(name: str, form: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.pkl"
    if form == "safetensors":
        snapshots.save(snapshots.load(path), tmp_path / "net.safetensors")
        path = tmp_path / "net.safetensors"
    snapshot = snapshots.load(path)
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}-forward.npz").items()}

    denoised, logvar = snapshot.network(golden["x"], golden["sigma"], golden.get("labels"), return_logvar=True)

    assert (denoised - golden["denoised"]).norm() <= 1e-5 * golden["denoised"].norm()
    torch.testing.assert_close(logvar, golden["logvar"], rtol=1e-5, atol=1e-6)
    expected = json.loads((GOLDEN / "manifest.json").read_text())[name]
    assert snapshot.network.init_kwargs.items() >= expected["kw"].items()
    assert sum(p.numel() for p in snapshot.network.parameters()) == expected["params"]
    assert isinstance(snapshot.encoder, RGBEncoder if expected["encoder"] == "rgb" else StabilityVAEEncoder)
    assert not snapshot.network.training
    assert not any(p.requires_grad for p in snapshot.network.parameters())


@pytest.mark.parametrize("core", ["core", "_core"])
def test_files_of_both_numpy_generations_load(core: str, tmp_path: Path) -> None:
    data = renamed("latent", "numpy._core.multiarray", f"numpy.{core}.multiarray")
    snapshot = snapshots.load(write(tmp_path, data))
    expected = snapshots.load(GOLDEN / "latent.pkl")
    assert snapshot.encoder.config() == expected.encoder.config()
    torch.testing.assert_close(snapshot.network.state_dict(), expected.network.state_dict(), rtol=0, atol=0)


def test_conversion_keeps_every_bit_and_says_where_it_comes_from(tmp_path: Path) -> None:
    source = GOLDEN / "raw-snapshots" / "tiny-0000065-0.050.pkl"
    target = tmp_path / "tiny-0000065-0.050.safetensors"
    snapshots.save(snapshots.load(source), target)

    first, second = snapshots.load(source), snapshots.load(target)

    assert first.metadata == second.metadata
    assert second.metadata == {
        "nimg": 65536,
        "ema_std": 0.05,
        "source_sha256": "3d163931df67c437d1d3f742f4c13eac8751d04c4f538ce439a112c5e3b27b70",
    }
    torch.testing.assert_close(first.network.state_dict(), second.network.state_dict(), rtol=0, atol=0)
    stored = load_file(target)
    assert {key for key, tensor in stored.items() if tensor.dtype == torch.float32} == set(
        dict(first.network.named_buffers())
    )
    assert all(stored[key].dtype == torch.float16 for key, _ in first.network.named_parameters())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_saving_twice_gives_the_same_bytes_and_loading_keeps_extra_metadata(tmp_path: Path) -> None:
    snapshot = snapshots.load(GOLDEN / "latent.pkl")
    snapshot.metadata.update(note="ours", nimg=1024)
    for name in ("a.safetensors", "b.safetensors"):
        snapshots.save(snapshot, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = snapshots.load(tmp_path / "a.safetensors")
    assert again.metadata == snapshot.metadata
    assert again.encoder.config() == snapshot.encoder.config()
    assert snapshots.read_metadata(tmp_path / "a.safetensors")["init_kwargs"]["num_blocks"] == 2


@pytest.mark.parametrize(
    ("name", "run", "nimg", "ema_std"),
    [
        ("edm2-img512-s-2147483-0.130.pkl", "edm2-img512-s", 2**31, 0.130),
        ("edm2-img512-xs-0134217-0.125.pkl", "edm2-img512-xs", 2**27, 0.125),
        ("edm2-img512-m-0268435-0.155.safetensors", "edm2-img512-m", 2**28, 0.155),
        ("edm2-img512-xxl-0939524-0.075", "edm2-img512-xxl", 896 * 2**20, 0.075),
        ("digits-main-0000077-0.100.safetensors", "digits-main", 77 * 1024 - 1024, 0.1),
    ],
)
def test_names_say_run_length_and_ema(name: str, run: str, nimg: int, ema_std: float) -> None:
    parts = snapshots.parse_name(name)
    assert parts is not None
    assert (parts.run, snapshots.kimg_to_nimg(parts.kimg), parts.ema_std) == (run, nimg, ema_std)
    assert (
        snapshots.format_name(*parts)
        == Path(name).name.removesuffix(".pkl").removesuffix(".safetensors") + ".safetensors"
    )
    assert snapshots.with_ema(name, 0.2) == snapshots.format_name(run, parts.kimg, 0.2)


@pytest.mark.parametrize("count", [1, 32, 65, 96, 2**17, 2**21, 999_424])
def test_image_counts_in_multiples_of_1024_survive_the_name(count: int) -> None:
    assert snapshots.kimg_to_nimg(count * 1024 // 1000) == count * 1024


@pytest.mark.parametrize("name", ["net.pkl", "run-77-0.1.pkl", "run-0000077.pkl", ""])
def test_other_names_say_nothing(name: str) -> None:
    assert snapshots.parse_name(name) is None
    with pytest.raises(InputError, match="RUN-KIMG-STD"):
        snapshots.with_ema(name, 0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: renamed("guide", "Precond", "Surprise"), r"class is Surprise, expected Precond"),
        (lambda: renamed("guide", "MPConv", "Trap"), r"is of class Trap, expected one of Precond"),
        (lambda: renamed("guide", "StandardRGBEncoder", "Trap"), r"encoder is Trap, expected StandardRGBEncoder"),
        (lambda: renamed("guide", "ema", "net"), r"expected a published network snapshot"),
        (lambda: renamed("guide", "out_gain", "in_gain"), r"unet\.out_gain is missing"),
        (lambda: renamed("guide", "num_blocks", "num_bricks"), r"do not build a network .*num_bricks"),
        (lambda: constructed(b"K\x10"), r"has shape \[8\], expected \[16\]"),
        (
            lambda: constructed(b"J\xff\xff\xff\x7f"),
            r"model_channels is 2147483647, expected an integer of at most 8192",
        ),
        (lambda: constructed(b"\x88"), r"model_channels is True, expected an integer"),
        (lambda: constructed(b"}"), r"model_channels is of type dict, expected an integer"),
        (lambda: constructed(b"\x8c\x01x"), r"model_channels is 'x', expected an integer"),
        (
            lambda: altered("latent", b"D\x90\xf5= \xa5\xdd=", b"D\x90\xf5> \xa5\xdd="),
            r"encoder's scale is \[.*\], expected \[0\.119",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(data: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, data())
    with pytest.raises(InputError, match=message) as caught:
        snapshots.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    data = (GOLDEN / "uncond.pkl").read_bytes()
    for length in [0, 1, 10, *range(100, len(data), len(data) // 40), len(data) - 1]:
        with pytest.raises(InputError, match=r"net\.pkl"):
            snapshots.load(write(tmp_path, data[:length]))


def test_altered_bytes_give_a_network_or_an_error_for_people(tmp_path: Path) -> None:
    data = (GOLDEN / "uncond.pkl").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        for position in random.integers(len(data), size=3):
            broken[position] = random.integers(256)
        try:
            snapshots.load(write(tmp_path, bytes(broken)))
        except InputError:
            refused += 1
    assert refused > 5


def test_missing_file_and_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pkl: no such network file"):
        snapshots.load(tmp_path / "none.pkl")
    with pytest.raises(InputError, match=r"net\.txt: expected a \.safetensors or \.pkl"):
        snapshots.load(write(tmp_path, b"", "net.txt"))


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> Any:
        call = (self.function, self.arguments)
        return call if self.state is None else (*call, self.state)


def typed_storage(count: int) -> torch.TypedStorage:
    return torch.TypedStorage(wrap_storage=torch.zeros(count).untyped_storage(), dtype=torch.float32, _internal=True)


def legacy(value: Any) -> bytes:
    """What torch pickled before it used zip files; the form nested in published networks."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def in_zip(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def nested(data: bytes) -> bytes:
    return pickle.dumps({"ema": Calls(torch.storage._load_from_bytes, data)})


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    storage = Calls(torch.storage._load_from_bytes, legacy(typed_storage(4)))
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}))


def global_of(module: str, name: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93."


def array_state(dtype: str, shape: tuple[int, ...], content: Any) -> bytes:
    empty = Calls(
        np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, shape, np.dtype(dtype), False, content)
    )
    return pickle.dumps(empty)


def announcing(elements: int) -> bytes:
    """Nested storage of one element that claims to have many."""
    data = legacy(typed_storage(1))
    claim = b"X\x03\x00\x00\x00cpuq\x03K\x01"
    assert claim in data
    return nested(data.replace(claim, claim[:-2] + b"J" + struct.pack("<i", elements)))


def module_in_itself() -> bytes:
    """A network that contains itself."""
    return (
        b"\x80\x04}" + text("ema") + text("torch_utils.persistence") + text("_reconstruct_persistent_obj") + b"\x93}("
        + text("class_name") + text("Precond") + text("state") + b"}\x94" + text("_modules") + b"}" + text("x")
        + text("torch.nn.modules.container") + text("ModuleDict") + b"\x93)\x81h\x00b" + b"s" + b"s"
        + b"u\x85Rs."
    )  # fmt: skip


def changes_stand_in() -> bytes:
    """BUILD with a pair of states sets attributes, here of what stands in for a name."""
    function = text("torch._utils") + text("_rebuild_parameter") + b"\x93"
    return b"\x80\x04" + function + b"N}" + text("__doc__") + text("changed") + b"s\x86b."


HOSTILE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system": (lambda command: pickle.dumps(Calls(os.system, command)), r"names posix\.system.*nothing was run"),
    "builtins.eval": (lambda command: pickle.dumps(Calls(eval, "1")), r"names builtins\.eval"),
    "builtins.getattr": (lambda command: pickle.dumps(Calls(getattr, "", "join")), r"names builtins\.getattr"),
    "dotted name": (
        lambda command: global_of("torch._utils", "_rebuild_parameter.__globals__"),
        r"names torch\._utils\._rebuild_parameter\.__globals__",
    ),
    "old instance opcode": (lambda command: f"(S'{command}'\nios\nsystem\n.".encode(), r"names os\.system"),
    "numpy under another name": (lambda command: global_of("numpy", "load"), r"names numpy\.load"),
    "torch.load": (lambda command: global_of("torch", "load"), r"names torch\.load"),
    "nested os.system": (lambda command: nested(legacy(Calls(os.system, command))), r"name posix\.system.*nothing was"),
    "nested eval": (lambda command: nested(legacy([Calls(eval, "1")])), r"name __builtin__\.eval"),
    "nested plain pickle": (lambda command: nested(pickle.dumps(Calls(os.system, command))), r"nested tensors"),
    "nested zip": (lambda command: nested(in_zip(Calls(os.system, command))), r"nested tensors.* not a pickle"),
    "nested object": (lambda command: nested(legacy({"a": 1})), r"hold dict, expected one storage"),
    "nested empty": (lambda command: nested(b""), r"nested tensors: truncated or not a pickle"),
    "nested claims 2^31 elements": (lambda command: announcing(2**31 - 1), r"state 2147483647 elements in \d+ bytes"),
    "extension registry": (lambda command: b"\x80\x04\x82\x01.", r"uses pickle extension 1"),
    "persistent id": (lambda command: b"\x80\x04K\x01Q.", r"persistent id"),
    "memo table of 2^32": (lambda command: b"\x80\x04Nr\xff\xff\xff\xff.", r"memo index 4294967295"),
    "bytes of 2^60": (lambda command: b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", r"truncated or not a pickle"),
    "frame of 2^60": (lambda command: b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.", r"net\.pkl"),
    "lists 10^5 deep": (
        lambda command: b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        r"depth 501, expected at most",
    ),
    "tensor beyond its storage": (lambda command: tensor((3,), (1,), 2), r"size \(3,\) in a storage of 4"),
    "tensor of 10^12": (lambda command: tensor((10**12,), (1,)), r"in a storage of 4"),
    "tensor of 10^12 by stride 0": (lambda command: tensor((10**6, 10**6), (0, 0)), r"in a storage of 4"),
    "tensor of negative size": (lambda command: tensor((-1, -4), (1, 1)), r"not counts"),
    "array of objects": (lambda command: array_state("O", (10**8,), []), r"dtype 'O8', expected numbers"),
    "array of 10^12": (lambda command: array_state("f8", (10**12,), b""), r"array of 0 bytes with shape"),
    "array by shape": (lambda command: pickle.dumps(Calls(np.ndarray, (10**12,))), r"not a sound pickle"),
    "network in itself": (lambda command: module_in_itself(), r"occurs twice"),
    "change of a stand-in": (lambda command: changes_stand_in(), r"stand-in cannot be changed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle_is_refused_by_name_and_nothing_runs(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    marker = tmp_path / "ran"
    path = write(tmp_path, make(f"touch {marker}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        snapshots.load(path)
    assert not marker.exists()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_harness_would_notice_code_that_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(HOSTILE["os.system"][0](f"touch {marker}"))
    assert marker.exists()


def test_cached_extension_is_refused(tmp_path: Path) -> None:
    copyreg.add_extension("builtins", "print", 240)
    try:
        with pytest.raises(InputError, match="uses pickle extension 240"):
            snapshots.load(write(tmp_path, b"\x80\x04\x82\xf0."))
    finally:
        copyreg.remove_extension("builtins", "print", 240)


def rewritten(tmp_path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> Path:
    """A sound .safetensors network after `change` of its tensors and metadata."""
    source, target = tmp_path / "source.safetensors", tmp_path / "net.safetensors"
    snapshots.save(snapshots.load(GOLDEN / "guide.pkl"), source)
    tensors, metadata = load_file(source), snapshots.read_metadata(source)
    text = change(tensors, metadata)
    text = text if isinstance(text, str) else json.dumps(metadata)
    save_file(tensors, target, metadata={snapshots.METADATA: text})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("unet.out_gain"), r"unet\.out_gain is missing"),
        (lambda t, m: t.update(extra=torch.zeros(1)), r"extra has no place"),
        (lambda t, m: t.update({"unet.out_gain": torch.zeros(2)}), r"unet\.out_gain has shape \[2\], expected \[\]"),
        (lambda t, m: t["unet.out_gain"].fill_(torch.nan), r"unet\.out_gain .*expected finite"),
        (lambda t, m: t.update({"unet.out_gain": torch.zeros([], dtype=torch.int32)}), r"int32.*expected finite"),
        (lambda t, m: m.pop("init_kwargs"), r"metadata cannot be used .*init_kwargs"),
        (lambda t, m: m.pop("encoder"), r"metadata cannot be used .*encoder"),
        (lambda t, m: m.update(encoder={"kind": "trap"}), r"metadata cannot be used .*trap"),
        (lambda t, m: m["init_kwargs"].update(logvar_channels=10**12), r"logvar_channels is 1000000000000"),
        (lambda t, m: m["init_kwargs"].update(num_blocks=-1), r"num_blocks is -1"),
        (lambda t, m: m["init_kwargs"].update(channel_mult=[1] * 100), r"channel_mult is of type list, expected"),
        (lambda t, m: m["init_kwargs"].update(sigma_data="0.5"), r"sigma_data is '0\.5', expected a finite number"),
        (lambda t, m: m["init_kwargs"].update(sigma_data=float("nan")), r"sigma_data is nan, expected a finite"),
        (lambda t, m: m["init_kwargs"].update(sigma_data=0), r"sigma_data is 0, expected a number above 0"),
        (lambda t, m: m["init_kwargs"].update(sigma_data=10**400), r"sigma_data is 1000+, expected a finite"),
        (
            lambda t, m: m["init_kwargs"].update(sigma_data=[0.5]),
            r"sigma_data is of type list, expected a number",
        ),
        (
            lambda t, m: m["init_kwargs"].update(dropout=[0.5]),
            r"dropout is of type list, expected a number",
        ),
        (lambda t, m: m["init_kwargs"].update(label_balance=7), r"label_balance is 7, expected a number from 0 to 1"),
        (lambda t, m: m["init_kwargs"].update(channels_per_head=0), r"do not build a network"),
        (lambda t, m: "{", r"not a sound safetensors file"),
        (lambda t, m: "[]", r"no 'autoguidance' metadata"),
    ],
)
def test_network_that_does_not_fit_its_description_is_named(change: Any, message: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        snapshots.load(path)
    assert str(caught.value).startswith(str(path))


def test_truncated_or_foreign_safetensors_are_named(tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda t, m: None)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match=r"net\.safetensors: not a sound safetensors file"):
            snapshots.load(write(tmp_path, data[:length], "net.safetensors"))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected a network saved by this toolkit"):
        snapshots.load(path)


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    snapshot = snapshots.load(GOLDEN / "guide.pkl")
    path = tmp_path / "net.safetensors"
    snapshots.save(snapshot, path)
    before = path.read_bytes()
    snapshot.metadata["bad"] = object()
    with pytest.raises(TypeError):
        snapshots.save(snapshot, path)
    assert path.read_bytes() == before
    with safe_open(path, "pt") as file:
        assert snapshots.METADATA in file.metadata()
    assert [found.name for found in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_network_without_an_encoder_is_rgb(golden: Path, tmp_path: Path) -> None:
    """The released code takes it so, and the file is otherwise as any other."""
    path = tmp_path / "guide.pkl"
    path.write_bytes(renamed("guide", "encoder", "decoder"))
    found, expected = snapshots.load(path), snapshots.load(golden / "guide.pkl")
    assert isinstance(found.encoder, RGBEncoder)
    weights = expected.network.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.network.state_dict().items())
