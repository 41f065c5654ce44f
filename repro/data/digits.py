"""The small real data set: scikit-learn's handwritten digits under random affine transformations, and its features.

The 1,797 digits become an unlimited, well-defined distribution, so that reference statistics can come from as many
fresh images as wanted. Distances are measured in the features of a small classifier trained here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from metrics import detectors, statistics
from metrics.files import InputError, atomic_write, load_state_dict, sha256_file, write_json
from repro.data import mix, uniform
from repro.encoders import RGBEncoder

RESOLUTION = 16
NUM_CLASSES = 10
FEATURE_DIM = 64


@dataclass(frozen=True)
class DigitSettings:
    """Extent of the random transformations, each uniform in [-value, value], and of the reference set."""

    shift: float = 0.18
    """Translation, as a share of half the image."""
    rotation: float = 0.35
    """Radians."""
    log_scale: float = 0.2
    """Natural logarithm of the magnification."""
    shear: float = 0.25
    """Horizontal displacement per unit of height."""
    num_reference: int = 8192
    """Fresh images that the reference statistics come from."""
    reference_seed: int = 1_000_000
    """Seed of those images; no training run should use it."""
    classifier_steps: int = 400
    """Training length of the classifier, in batches of 128."""
    classifier_seed: int = 2_000_000
    """Seed of the classifier's weights and images."""


@cache
def _originals() -> tuple[Tensor, NDArray[np.int64]]:
    """The digits enlarged to 12x12 and padded to 16x16, [1797, 1, 16, 16] in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    small = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    large = F.interpolate(small, size=12, mode="bicubic", align_corners=False).clamp(0, 1)
    return F.pad(large, [2, 2, 2, 2]), classes.astype(np.int64)


class Digits:
    """Transformed digits, grey, uint8 [N, 1, 16, 16]; each image a function of (seed, position) alone."""

    img_resolution = RESOLUTION
    img_channels = 1
    label_dim = NUM_CLASSES

    def __init__(self, settings: DigitSettings | None = None) -> None:
        self.settings = settings or DigitSettings()
        self.encoder = RGBEncoder()
        s = self.settings
        self.digest = f"digits shift={s.shift} rotation={s.rotation} log_scale={s.log_scale} shear={s.shear}"

    def draw(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Images uint8 [N, 1, 16, 16] and classes [N] at `positions` of the stream of `seed`."""
        originals, classes = _originals()
        items = (mix(seed, 10, positions) % np.uint64(len(classes))).astype(np.int64)
        theta = self._transformations(seed, positions)
        grid = F.affine_grid(theta, [len(positions), 1, RESOLUTION, RESOLUTION], align_corners=False)
        images = F.grid_sample(originals[items], grid, align_corners=False)
        return (images * 255).round().to(torch.uint8), classes[items]

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, 1, 16, 16] and one-hot labels [N, 10], for training."""
        images, classes = self.draw(seed, positions)
        return images, F.one_hot(torch.from_numpy(classes), NUM_CLASSES).to(torch.float32)

    def _transformations(self, seed: int, positions: NDArray[np.int64]) -> Tensor:
        """Inverse affine maps [N, 2, 3] from output to input coordinates in [-1, 1]."""
        s = self.settings
        extents = (s.shift, s.shift, s.rotation, s.log_scale, s.shear)
        dx, dy, angle, log_scale, shear = (
            extent * (2 * uniform(seed, 11 + i, positions) - 1) for i, extent in enumerate(extents)
        )
        cos, sin = np.cos(angle) * np.exp(-log_scale), np.sin(angle) * np.exp(-log_scale)
        theta = np.stack([cos, sin + shear * cos, dx, -sin, cos - shear * sin, dy], axis=1)
        return torch.from_numpy(theta.astype(np.float32)).reshape(-1, 2, 3)


class Classifier(nn.Module):
    """A small convolutional network; the direction of its penultimate layer is the feature space of `fd_digits`.

    The length of that layer's output is left out: it grows with confidence, which guidance raises, and would hide how
    well the images themselves fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, FEATURE_DIM),
        )
        self.head = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, 16, 16] -> float32 [N, 64], each vector of mean square 1."""
        return F.normalize(self._activations(images)) * FEATURE_DIM**0.5

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, C, 16, 16] -> logits [N, 10]."""
        return self.head(self._activations(images))

    def _activations(self, images: Tensor) -> Tensor:
        """Rectified penultimate layer [N, 64]; several channels are averaged."""
        return F.relu(self.body(images.to(torch.float32).mean(dim=1, keepdim=True) / 127.5 - 1))


def train_classifier(digits: Digits) -> tuple[Classifier, float]:
    """Train the feature network on fresh images; returns it with its accuracy on 2,048 others."""
    s = digits.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.classifier_seed)
        model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=s.classifier_steps)
    for step in range(s.classifier_steps):
        images, classes = digits.draw(s.classifier_seed, np.arange(step * 128, (step + 1) * 128))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), torch.from_numpy(classes), label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    images, classes = digits.draw(s.classifier_seed + 1, np.arange(2048))
    return model, float((model(images).argmax(dim=1).numpy() == classes).mean())


class DigitsDetector:
    """The classifier's penultimate layer as a detector: uint8 [N, C, 16, 16] -> float32 [N, 64] on the CPU or `device`.

    `weights` is the classifier that `prepare` has trained; raises InputError when it is missing or of another shape.
    """

    name = "digits"
    dim = FEATURE_DIM

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        if weights is None:
            raise InputError("detector 'digits' needs its weights, the digits.safetensors that stage `data` writes")
        state = load_state_dict(weights)
        self.device = torch.device(device)
        self.model = Classifier().eval().requires_grad_(False)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as err:
            raise InputError(f"{weights}: not the digits classifier: {str(err).splitlines()[-1].strip()}") from err
        self.model.to(self.device)
        self.tags: Mapping[str, Any] = {
            "detector": self.name,
            "weights_sha256": sha256_file(weights),
            "resize": "none",
            "dtype": "float32",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2:] != (RESOLUTION, RESOLUTION):
            raise InputError(
                f"detector 'digits' takes uint8 [N, C, {RESOLUTION}, {RESOLUTION}], got {images.dtype} "
                f"{list(images.shape)}"
            )
        return self.model.features(images.to(self.device))


detectors.register("digits", DigitsDetector)


def prepare(folder: str | Path, settings: DigitSettings) -> None:
    """Train the feature network and measure the reference: what the stage `data` does.

    Leaves in `folder`: `digits.safetensors` (classifier), `digits.npz` (statistics), `digits-features.npy` (features of
    the reference images, float32 [num_reference, 64]) and `digits.json` (accuracy, settings).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = Digits(settings)
    classifier, accuracy = train_classifier(digits)
    weights = folder / "digits.safetensors"
    with atomic_write(weights) as temporary:
        save_file(classifier.state_dict(), temporary)
    detector = detectors.load("digits", weights=weights)
    images = (
        digits.draw(settings.reference_seed, np.arange(start, min(start + 1024, settings.num_reference)))[0]
        for start in range(0, settings.num_reference, 1024)
    )
    features = torch.cat([detector(batch) for batch in images]).numpy()
    tags = dict(detector.tags) | {"source_digest": digits.digest}
    statistics.save(statistics.from_features(features, tags), folder / "digits.npz")
    with atomic_write(folder / "digits-features.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, features)
    write_json(folder / "digits.json", {"accuracy": accuracy, "num_reference": settings.num_reference})
