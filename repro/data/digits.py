"""The small real data set: scikit-learn's handwritten digits under random affine transformations, and its features.

The 1,797 digits become an unlimited, well-defined distribution, so that reference statistics can come from as many
fresh images as wanted. Distances are measured in the features of a small classifier trained here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from metrics import distributed
from metrics.detectors import load, register
from metrics.features import FeatureSet, detect
from metrics.files import Downloads, InputError, atomic_write, explained, sha256_file, write_json
from metrics.files.tensors import load_state_dict
from metrics.names import Name
from metrics.progress import progress
from repro.data.kinds import Kind, write_reference
from repro.encoders import RGBEncoder
from repro.numerics import numerics
from repro.streams import mix, uniform
from repro.strict import within

RESOLUTION = 16
NUM_CLASSES = 10
NAME = "digits"
#: What a random affine map is made of: translations as shares of half the image, radians, natural logarithm of the
#: magnification, horizontal displacement per unit of height.
MAPS = ("shift x", "shift y", "rotation", "log scale", "shear")


@dataclass(frozen=True)
class DigitReference:
    """Settings of the reference: its images, and the classifier whose features distances are measured in."""

    #: Fresh images that the reference statistics come from.
    num_images: int = 8192
    #: Seed of those images; no training run should use it.
    seed: int = 1_000_000
    #: Training length of the classifier, in batches of 128.
    classifier_steps: int = 400
    #: Seed of the classifier's weights and images.
    classifier_seed: int = 2_000_000

    def __post_init__(self) -> None:
        for name, least in {"num_images": 2, "seed": 0, "classifier_steps": 1, "classifier_seed": 0}.items():
            within(self, least, 2**63 - 1, name)


@cache
def originals() -> tuple[Tensor, NDArray[np.int64]]:
    """The digits enlarged to 12x12 and padded to 16x16, [1797, 1, 16, 16] in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    small = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    large = F.interpolate(small, size=12, mode="bicubic", align_corners=False).clamp(0, 1)
    return F.pad(large, [2, 2, 2, 2]), classes.astype(np.int64)


def affine(maps: NDArray[np.float64]) -> Tensor:
    """Inverse affine maps [N, 2, 3], from output to input coordinates in [-1, 1], of `maps` [5, N], as in MAPS."""
    dx, dy, angle, log_scale, shear = maps
    cos, sin = np.cos(angle) * np.exp(-log_scale), np.sin(angle) * np.exp(-log_scale)
    theta = np.stack([cos, sin + shear * cos, dx, -sin, cos - shear * sin, dy], axis=1)
    return torch.from_numpy(theta.astype(np.float32)).reshape(-1, 2, 3)


def render(items: NDArray[np.int64], maps: NDArray[np.float64]) -> Tensor:
    """Originals `items` [N] under `maps` [5, N], float32 [N, 1, 16, 16] in [0, 1]."""
    grid = F.affine_grid(affine(maps), [len(items), 1, RESOLUTION, RESOLUTION], align_corners=False)
    return F.grid_sample(originals()[0][items], grid, align_corners=False)


@dataclass(frozen=True)
class Digits(Kind):
    """Transformed digits, grey, uint8 [N, 1, 16, 16]; each image a function of (seed, position) alone.

    The settings are the extent of the random transformations, each uniform in [-value, value].
    """

    measured, encoder = DigitReference, RGBEncoder()
    img_resolution, img_channels, label_dim = RESOLUTION, 1, NUM_CLASSES

    #: Translation, as a share of half the image.
    shift: float = 0.18
    #: Radians.
    rotation: float = 0.35
    #: Natural logarithm of the magnification.
    log_scale: float = 0.2
    #: Horizontal displacement per unit of height.
    shear: float = 0.25

    def __post_init__(self) -> None:
        within(self, 0, 10, "shift", "rotation", "log_scale", "shear")

    @property
    def digest(self) -> str:
        """What tells these digits from others."""
        return f"digits shift={self.shift} rotation={self.rotation} log_scale={self.log_scale} shear={self.shear}"

    def draw(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Images uint8 [N, 1, 16, 16] and classes [N] at `positions` of the stream of `seed`."""
        items, maps = self.factors(seed, positions)
        return render(items, maps).mul(255).round().byte(), originals()[1][items]

    def factors(self, seed: int, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What the images at `positions` are made of: numbers of their originals [N], and maps [5, N], as in MAPS."""
        items = (mix(seed, 10, positions) % np.uint64(len(originals()[1]))).astype(np.int64)
        unit = (2 * uniform(seed, 11 + i, positions) - 1 for i in range(len(MAPS)))
        return items, np.stack([extent * u for extent, u in zip(self.extents, unit, strict=True)])

    @property
    def extents(self) -> NDArray[np.float64]:
        """Of each of MAPS [5]: it is uniform in [-extent, extent]."""
        return np.array([self.shift, self.shift, self.rotation, self.log_scale, self.shear])

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, 1, 16, 16] and one-hot labels [N, 10], for training."""
        images, classes = self.draw(seed, positions)
        return images, F.one_hot(torch.from_numpy(classes), NUM_CLASSES).float()

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Nothing has to be made."""
        return self.digest

    def data_shape(self) -> tuple[int, int, int]:
        return RESOLUTION, 1, NUM_CLASSES

    def training(self, folder: Path) -> "Digits":
        return self

    def at_most(self, settings: DigitReference, number: int) -> DigitReference:
        return replace(settings, num_images=min(settings.num_images, number))

    def measure(self, folder: Path, target: Path, detectors: list[str], settings: Any, downloads: Downloads) -> None:
        """Features of fresh images; for detector `digits` its classifier is trained first, where it does not stand."""
        weights = standing_classifier(target, self, settings) if NAME in detectors else None
        loaded = {
            name: load(name, weights) if name == NAME else load(name, device=distributed.device()) for name in detectors
        }
        images, classes = self.draw(settings.seed, np.arange(settings.num_images))
        pixels = images.permute(0, 2, 3, 1).numpy()

        def features(name: str) -> FeatureSet:
            size = 1024 if name == NAME else 64  # of a batch, which decides the last bits of the digits' features
            batches = map(list, np.split(pixels, range(size, len(pixels), size)))
            with progress(f"reference, {name}", total=len(pixels)) as bar:
                return FeatureSet.of(detect(batches, {name: loaded[name]}, bar=bar)[name], loaded[name].tags)

        source = f"{self.digest} seed={settings.seed} images={settings.num_images}"
        write_reference(target, loaded, source, classes, lambda: {name: features(name) for name in loaded})


class Classifier(nn.Module):
    """A small convolutional network; the direction of its penultimate layer is the feature space of `fd_digits`.

    The length of that layer's output is left out: it grows with confidence, which guidance raises, and would hide how
    well the images themselves fit. With its weights loaded it is a `metrics.detectors.Detector`.
    """

    name, dim = NAME, 64
    tags: Mapping[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, self.dim)),
        )
        self.head = nn.Linear(self.dim, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, C, 16, 16] -> features [N, 64] float32, each of mean square 1; several channels are averaged."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2:] != (RESOLUTION, RESOLUTION):
            raise InputError(f"detector 'digits' takes uint8 [N, C, 16, 16], got {images.dtype} {list(images.shape)}")
        return F.normalize(self._penultimate(images)) * self.dim**0.5

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [N, C, 16, 16] -> [N, 10]."""
        return self.head(self._penultimate(images))

    def _penultimate(self, images: Tensor) -> Tensor:
        grey = images.to(self.head.weight.device, torch.float32).mean(dim=1, keepdim=True)
        return F.relu(self.body(grey / 127.5 - 1))


def train_classifier(digits: Digits, seed: int, steps: int) -> tuple[Classifier, float]:
    """Train the feature network on fresh images; returns it with its accuracy on 2,048 others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        images, classes = digits.draw(seed, np.arange(step * 128, (step + 1) * 128))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model.logits(images), torch.from_numpy(classes), label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    images, classes = digits.draw(seed + 1, np.arange(2048))
    return model, float((model.logits(images).argmax(dim=1).numpy() == classes).mean())


def standing_classifier(folder: Path, digits: Digits, settings: DigitReference) -> Path:
    """The feature network for these settings, `folder/digits.safetensors`, trained if it does not stand there.

    How it was made and its accuracy are in `digits.json` beside it.
    """
    weights, note = folder / "digits.safetensors", folder / "digits.json"
    made_from = {"data": digits.digest, "seed": settings.classifier_seed, "steps": settings.classifier_steps}
    made_from |= numerics("features")
    if weights.exists() and note.exists() and json.loads(note.read_text()).get("made_from") == made_from:
        return weights
    classifier, accuracy = train_classifier(digits, settings.classifier_seed, settings.classifier_steps)
    note.unlink(missing_ok=True)
    with atomic_write(weights) as temporary:
        save_file(classifier.state_dict(), temporary)
    write_json(note, {"accuracy": accuracy, "made_from": made_from})  # last: it tells what the weights are
    return weights


def load_detector(weights: str | Path | None = None, device: torch.device | str = "cpu") -> Classifier:
    """The classifier with the weights in a file, on `device`; raises InputError where they are missing or others."""
    if weights is None:
        raise InputError("detector 'digits' needs its weights, the digits.safetensors that stage `reference` writes")
    model = Classifier().eval().requires_grad_(False)
    with explained(f"{weights}: not the digits classifier", errors=(RuntimeError,)):
        model.load_state_dict(load_state_dict(weights))
    model.tags = {"detector": NAME, "weights_sha256": sha256_file(weights), "resize": "none", "dtype": "float32"}
    return model.to(device)


register(NAME, load_detector, "fd_digits", NAME, Name("FD_digits", -1, 3, r"FD$_\mathrm{digits}$"))
