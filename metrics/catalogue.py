"""Published reference files by name: a table, of which everything that fetches or lists references is a view.

EDM2 and EDM state their files in their READMEs, ADM in `evaluations/README.md` of openai/guided-diffusion, which says
that its batches hold statistics of the whole data set and images for precision and recall. `num_images` is the number
that the statistics are of: where a file does not say it, the size of the data set as its publisher gives it.
"""

from dataclasses import dataclass

from metrics.files import PUBLISHED
from metrics.registry import Registry

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
IMAGENET = 1_281_167  # images for training
IN_EDM2 = "EDM2 (arXiv:2312.02696), autoguidance (arXiv:2406.02507)"
IN_EDM = "EDM (arXiv:2206.00364)"
IN_ADM = "ADM (arXiv:2105.05233)"


@dataclass(frozen=True)
class PublishedReference:
    """A reference file to be had from its publisher."""

    url: str
    #: Of which the statistics are.
    num_images: int
    #: Side of the images, in pixels.
    resolution: int
    #: Papers whose values are measured against it.
    cited: str
    #: Detectors whose statistics it holds.
    detectors: tuple[str, ...] = ("inception",)
    #: Whether it holds some of the images too, which precision and recall are measured against.
    has_images: bool = False
    #: None: recorded at the first download, and enforced from then on.
    sha256: str | None = None

    @property
    def suffix(self) -> str:
        """That of the file: .pkl or .npz."""
        return self.url[self.url.rindex(".") :]


def _adm(place: str, num_images: int, resolution: int) -> PublishedReference:
    detectors = ("inception", "inception-spatial")
    return PublishedReference(f"{ADM}/{place}.npz", num_images, resolution, IN_ADM, detectors, has_images=True)


REFERENCES: Registry[PublishedReference] = Registry(
    "published reference",
    **{
        f"img{side}": PublishedReference(
            f"{PUBLISHED}/dataset-refs/img{side}.pkl", IMAGENET, side, IN_EDM2, ("inception", "dinov2")
        )
        for side in (512, 64)
    },
    **{
        f"{name}-{side}x{side}": PublishedReference(f"{EDM}/{name}-{side}x{side}.npz", count, side, IN_EDM)
        for name, side, count in (
            ("cifar10", 32, 50_000),
            ("ffhq", 64, 70_000),
            ("afhqv2", 64, 15_803),
            ("imagenet", 64, IMAGENET),
        )
    },
    **{
        f"adm-imagenet{side}": _adm(f"imagenet/{side}/VIRTUAL_imagenet{side}{labelled}", IMAGENET, side)
        for side, labelled in ((64, "_labeled"), (128, "_labeled"), (256, "_labeled"), (512, ""))
    },
    **{
        f"adm-{name}": _adm(f"lsun/{name}/VIRTUAL_lsun_{name}256", count, 256)
        for name, count in (("bedroom", 3_033_042), ("cat", 1_657_266), ("horse", 2_000_340))
    },
)
