"""Where a GPU's memory runs out, the batch is halved, once, and what comes out is the same; freed memory is kept."""

import platform
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from metrics.detectors.network import Network
from metrics.files import InputError
from metrics.memory import Pieces


class Device:
    """Stands in for a GPU that holds so many images."""

    def __init__(self, holds: int) -> None:
        self.holds, self.seen = holds, list[int]()

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images.flatten(1).float().mean(dim=1, keepdim=True)


def test_a_batch_that_fits_is_asked_for_as_it_was() -> None:
    images, device = torch.rand(10, 3, 2, 2), Device(10)
    torch.testing.assert_close(Pieces("it")(device, images), images.mean(dim=(1, 2, 3))[:, None])
    torch.testing.assert_close(Pieces("it", 4)(device, images), images.mean(dim=(1, 2, 3))[:, None])
    assert device.seen == [10, 4, 4, 2]
    assert Pieces("it")(device, images[:0]).shape == (0, 1)


def test_a_batch_that_does_not_fit_is_halved_from_then_on_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    images, device, pieces = torch.rand(10, 3, 2, 2), Device(6), Pieces("the VAE")
    for _ in range(2):
        torch.testing.assert_close(pieces(device, images), images.mean(dim=(1, 2, 3))[:, None])
    assert device.seen == [10, 5, 5, 5, 5]
    said = "the VAE: 10 images at once do not fit the GPU's memory; 5 at once from now on\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("count", "most"), [(10, 4), (1, 0)])
def test_a_second_time_is_an_error_that_says_what_to_do(count: int, most: int) -> None:
    with pytest.raises(InputError, match=r"the VAE: \d images at once do not fit the GPU's memory; leave it more"):
        Pieces("the VAE")(Device(most), torch.rand(count, 3, 2, 2))


def test_two_threads_that_run_out_at_once_halve_it_once() -> None:
    both, pieces = threading.Barrier(2), Pieces("it")
    images, found = torch.rand(8, 3, 2, 2), list[Tensor]()

    def call(batch: Tensor) -> Tensor:
        if len(batch) == 8:
            both.wait(10)
            raise torch.OutOfMemoryError
        return batch[:, 0, 0, :1]

    threads = [threading.Thread(target=lambda: found.append(pieces(call, images))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(x, images[:, 0, 0, :1]) for x in found)
    assert pieces.size == 4


def test_a_detector_halves_its_batch() -> None:
    class Small(Network):
        dim = 1

        def __init__(self) -> None:
            super().__init__("small", {}, "none", "cpu", torch.float32)
            self.device_memory = Device(5)

        def _prepared(self, images: Tensor) -> Tensor:
            return images

        def _features(self, x: Tensor) -> Tensor:
            return self.device_memory(x)

    detector, images = Small(), torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(detector(images), images.float().mean(dim=(1, 2, 3))[:, None])
    assert detector.device_memory.seen == [8, 4, 4]


#: What a command does that allocates 100 MiB and frees them, ten times: faults of each time.
AGAIN = """
import resource, sys, click, torch
from metrics import command_line

@click.group()
def cli(): ...

@cli.command("work")
def work():
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(100 * 2**20, dtype=torch.uint8).zero_()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

sys.exit(command_line.run(cli, "tool", ["work"]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_commands_use_large_blocks_again() -> None:
    said = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True).stdout
    first, *later = map(int, said.split())
    assert first >= 50  # pages of 2 MiB at most
    assert sum(later) < len(later) * first / 2
