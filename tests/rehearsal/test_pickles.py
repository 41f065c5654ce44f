"""The rehearsal's network files have the form of the authors': the same names, nesting and values."""

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics import references
from repro import snapshots
from repro.encoders import StabilityVAEEncoder
from tests.rehearsal import fixtures, pickles

NETWORKS = ["main", "guide", "uncond", "latent", "latent-guide"]


def names(data: bytes) -> set[str]:
    """Every name that a pickle refers to."""
    found, strings, memo = set(), [], {}
    for opcode, argument, _ in pickletools.genops(data):
        if "UNICODE" in opcode.name:
            strings.append(argument)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif "BINGET" in opcode.name:
            strings.append(memo[argument])
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(map(str, strings[-2:])))
        elif opcode.name == "GLOBAL":
            found.add(str(argument).replace(" ", "."))
    return found


class _Recorder(pickle.Unpickler):
    """Reads a trusted pickle as plain trees: records and containers become (kind, contents)."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct_persistent_obj":
            return lambda meta: ["record", {**meta, "module_src": ""}]
        if name == "EasyDict":
            return type("EasyDict", (dict,), {})
        if name == "ModuleDict":
            return type("ModuleDict", (), {})
        return super().find_class(module, name)


def tree(path: Path) -> Any:
    with open(path, "rb") as file:
        return plain(_Recorder(file).load())


def plain(found: Any) -> Any:
    if type(found).__name__ == "ModuleDict":
        return ["ModuleDict", plain(vars(found))]
    if isinstance(found, dict):
        return [type(found).__name__, {key: plain(value) for key, value in found.items()}]
    if isinstance(found, list | tuple):
        return [type(found).__name__, *map(plain, found)]
    if isinstance(found, torch.Tensor):
        return [type(found).__name__, str(found.dtype), found.requires_grad, found.tolist()]
    if isinstance(found, np.ndarray):
        return ["array", str(found.dtype), np.round(found.astype(float), 5).tolist()]
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_golden_network_is_written_as_the_authors_wrote_it(golden: Path, tmp_path: Path, name: str) -> None:
    theirs, ours = golden / f"{name}.pkl", tmp_path / f"{name}.pkl"
    ours.write_bytes(pickles.network(snapshots.load(theirs)))
    wanted, found = tree(theirs), tree(ours)
    for content in (wanted, found):
        content[1].pop("dataset_kwargs")  # where the training images were
    assert found == wanted
    assert list(found[1]) == list(wanted[1])


@pytest.mark.parametrize("name", ["main", "latent"])
def test_it_refers_to_the_same_names(golden: Path, name: str) -> None:
    theirs = golden / f"{name}.pkl"
    found = names(pickles.network(snapshots.load(theirs)))
    assert found == names(theirs.read_bytes())
    assert "torch_utils.persistence._reconstruct_persistent_obj" in found


def test_reading_one_needs_nothing_of_the_rehearsal(tmp_path: Path) -> None:
    name = "edm2-img512-s-2147483-0.070.pkl"
    (tmp_path / name).write_bytes(fixtures.network(f"posthoc-reconstructions/{name}"))
    with pytest.raises(ModuleNotFoundError, match="dnnlib"), open(tmp_path / name, "rb") as file:
        pickle.load(file)
    snapshot = snapshots.load(tmp_path / name)
    assert isinstance(snapshot.encoder, StabilityVAEEncoder)
    assert snapshot.metadata["nimg"] == 2147483648
    assert snapshot.network.unet.out_gain.item() != 0


def test_files_of_one_training_run_share_their_form_and_differ_in_weights(tmp_path: Path) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        (tmp_path / f"{name}.pkl").write_bytes(fixtures.network(f"raw-snapshots/{name}.pkl"))
        return dict(snapshots.load(tmp_path / f"{name}.pkl").network.state_dict())

    early, late, other = map(
        weights, ("edm2-img64-xxl-0033554-0.050", "edm2-img64-xxl-0067108-0.050", "edm2-img64-xs-0033554-0.050")
    )
    again = weights("edm2-img64-xxl-0033554-0.050")
    key = "unet.dec.8x8_block0.conv_res0.weight"
    assert early.keys() == late.keys() != other.keys()
    assert all(torch.equal(early[name], again[name]) for name in early)
    assert 0.01 < (early[key] - late[key]).norm() / early[key].norm() < 0.5


def test_statistics_are_read_as_published_ones(tmp_path: Path) -> None:
    (tmp_path / "img512.pkl").write_bytes(fixtures.reference("dataset-refs/img512.pkl"))
    found = references.load(tmp_path / "img512.pkl")
    assert found is not None
    for detector, dim in (("inception", 24), ("dinov2", 16)):
        statistics = found.require(detector)
        assert statistics.num_images == fixtures.NUM_REAL
        assert statistics.mu.shape == (dim,)
        assert np.linalg.eigvalsh(statistics.sigma).min() > 0
