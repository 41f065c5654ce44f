"""Pickles: what belongs comes back as it was, anything else is refused by name and never runs."""

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from metrics.files import InputError
from metrics.files.reading import NUMPY_GLOBALS, load_pickle
from tests.metrics.files.hostile import Calls


@pytest.mark.parametrize("protocol", range(3, 6))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_statistics_pickles_of_both_numpy_generations_load(core: str, protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    content = {
        "num_images": 50000,
        "fid": {"mu": generator.normal(size=5), "sigma": np.asfortranarray(generator.normal(size=(5, 5)))},
        "count": np.int64(7),
        "mean": np.float32(0.5),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4)),
    }
    data = pickle.dumps(content, protocol)
    if core == "core":
        data = _with_numpy_1_names(data)
    (tmp_path / "ref.pkl").write_bytes(data)

    loaded = load_pickle(tmp_path / "ref.pkl", NUMPY_GLOBALS)

    assert loaded["num_images"] == 50000
    np.testing.assert_array_equal(loaded["fid"]["mu"], content["fid"]["mu"])
    np.testing.assert_array_equal(loaded["fid"]["sigma"], content["fid"]["sigma"])
    assert (loaded["count"], loaded["mean"]) == (7, 0.5)
    np.testing.assert_array_equal(loaded["big"], [0, 1, 2])
    assert loaded["empty"].shape == (0, 4)


def _with_numpy_1_names(data: bytes) -> bytes:
    """NumPy 1 said numpy.core; a pickle of protocol 4 holds each name behind its length, in frames of stated size."""
    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    kept = [data[s:e] for (op, _, s), e in zip(operations, ends, strict=True) if op.name != "FRAME"]  # type: ignore[operator]
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        new = module.replace(b"_core", b"core")
        kept = [piece.replace(bytes([len(module)]) + module, bytes([len(new)]) + new) for piece in kept]
        kept = [piece.replace(b"c" + module + b"\n", b"c" + new + b"\n") for piece in kept]
    joined = b"".join(kept)
    assert b"_core" not in joined
    assert b"numpy.core" in joined
    return joined


def test_foreign_name_is_refused_by_name_and_nothing_runs(tmp_path: Path) -> None:
    data = pickle.dumps({"mu": Calls(os.system, f"touch {tmp_path / 'ran'}")})
    (tmp_path / "ref").write_bytes(data)
    with pytest.raises(InputError, match=r"/ref: names posix\.system, which has no place.*nothing was run"):
        load_pickle(tmp_path / "ref", NUMPY_GLOBALS)
    assert not (tmp_path / "ran").exists()


def test_pickle_larger_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "ref.pkl", "wb") as file:
        file.truncate(2**33 + 1)
    with pytest.raises(InputError, match=r"ref\.pkl: 8589934593 bytes, expected a regular file of at most 8589934592"):
        load_pickle(tmp_path / "ref.pkl", {})


def test_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pkl: cannot be read \(.*No such file"):
        load_pickle(tmp_path / "none.pkl", {})
    with pytest.raises(InputError, match="expected a regular file"):
        load_pickle(tmp_path, {})


@pytest.mark.parametrize("code", ["O8", "V8", "U4", "M8", "f999999999", "(10,)f8"])
def test_arrays_of_other_things_than_numbers_are_refused(code: str, tmp_path: Path) -> None:
    (tmp_path / "ref").write_bytes(pickle.dumps(Calls(np.dtype, code, False, True)))
    with pytest.raises(InputError, match="expected numbers"):
        load_pickle(tmp_path / "ref", NUMPY_GLOBALS)
