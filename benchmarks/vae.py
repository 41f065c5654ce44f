"""Images per second of the VAE's decoder: the Stability VAE's shape, random weights, 64 x 64 latents to 512 x 512.

On CUDA with TF32 in its convolutions, as in the published runs and by default, against strict float32; on a CPU, which
has no TF32, both are the same. The images are asserted to agree within a grey level or two.
"""

import torch

from benchmarks.detectors import rates
from repro.preflight.standins import random_vae

BATCH = {"cpu": 1, "cuda": 32}
SIDE = {"cpu": 16, "cuda": 64}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = random_vae()
    latents = torch.randn(BATCH[device], 4, SIDE[device], SIDE[device], device=device) / 2

    def decode(allowed: bool) -> torch.Tensor:
        encoder.tf32 = allowed
        return encoder.decode(latents)

    error = int((decode(True).int() - decode(False).int()).abs().max())
    assert error <= 2, error
    found = rates({"float32": lambda: decode(False), "TF32": lambda: decode(True)}, len(latents), device)
    print(
        f"VAE, {device}, batch {len(latents)}, {8 * SIDE[device]} pixels: TF32 {found['TF32']:.2f} images/s, strict "
        f"float32 {found['float32']:.2f}, ratio {found['TF32'] / found['float32']:.2f}; {error} grey level(s) apart"
    )


if __name__ == "__main__":
    main()
