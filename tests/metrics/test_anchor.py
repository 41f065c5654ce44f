"""A published FID and KID, end to end: 256 CIFAR-10 training images against 256 test images, real weights.

torch-fidelity's regression test publishes FID 110.28082617 and, for subsets of 64, KID -0.00067925.
"""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics import features
from metrics.__main__ import main

FID = 110.28082617
KID, KID_SUBSET = -0.00067925, 64


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images as folder, zip, tar and npz, and the test images as `test.npz`."""
    root = tmp_path_factory.mktemp("anchor")
    with np.load(Path(__file__).parents[1] / "data" / "cifar10_anchor_256.npz") as data:
        train, test = data["train"], data["valid"]
    np.savez(root / "test.npz", arr_0=test)
    np.savez(root / "train.npz", arr_0=train)
    (root / "train").mkdir()
    with zipfile.ZipFile(root / "train.zip", "w") as zipped, tarfile.open(root / "train.tar", "w") as tape:
        for i, pixels in enumerate(train):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "png")
            name, content = f"{i:03d}.png", stream.getvalue()
            (root / "train" / name).write_bytes(content)
            zipped.writestr(f"images/{name}", content)
            info = tarfile.TarInfo(f"images/{name}")
            info.size = len(content)
            tape.addfile(info, io.BytesIO(content))
    return root


@pytest.mark.slow
def test_published_fid_and_kid_come_out_of_folder_zip_tar_and_npz(anchor: Path, inception_weights: Path) -> None:
    # Zip and tar hold the folder's very bytes, so the content digest lets them share the folder's features; the npz
    # holds pixels and is extracted anew.
    extraction = ["--weights", str(inception_weights), "--cache", str(anchor / "cache")]
    reference = str(anchor / "reference.npz")
    assert main(["features", str(anchor / "test.npz"), "--out", reference, *extraction]) == 0
    found = {}
    for source in ("train", "train.zip", "train.tar", "train.npz"):
        out = anchor / f"{source}.json"
        options = ["--ref", reference, "--metrics", "fd,kid", "--kid-subset-size", str(KID_SUBSET), "--json", str(out)]
        assert main(["evaluate", str(anchor / source), *options, *extraction]) == 0
        results = json.loads(out.read_text())["results"]
        found[source] = {r["metric"]: r["value"] for r in results}
        spread = next(r["error"] for r in results if r["metric"] == "kid")
    assert found["train"]["fid"] == pytest.approx(FID, abs=1e-3)
    assert abs(found["train"]["kid"] - KID) < 3 * spread / 100**0.5
    assert found["train"]["kid"] == pytest.approx(KID, abs=1e-6)  # the subsets are the same ones
    assert len(list((anchor / "cache").rglob("*.npz"))) == 3  # of the test images, the PNGs and the npz
    for source in ("train.zip", "train.tar", "train.npz"):
        assert found[source] == found["train"], source
    activations = features.load(reference)["inception"].gather()
    moments = {"mu": np.mean(activations, axis=0), "sigma": np.cov(activations, rowvar=False)}
    with np.load(anchor / "test.npz") as images:
        np.savez(anchor / "adm.npz", **moments, arr_0=images["arr_0"])
    np.savez(anchor / "edm.npz", **moments)
    for layout in ("adm", "edm"):
        how = ["--ref", str(anchor / f"{layout}.npz"), "--json", str(out), "--force", *extraction]
        assert main(["evaluate", str(anchor / "train"), *how]) == 0
        assert json.loads(out.read_text())["results"][0]["value"] == pytest.approx(FID, abs=1e-3), layout
