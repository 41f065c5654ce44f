"""Do processes find each other? torchrun over all GPUs (two processes without any) for a few steps of training.

Run as a module this is one of the processes.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from metrics import distributed
from metrics.files import on_one_line
from metrics.machine import machine
from repro.preflight.checks import OutOfTimeError, Setting, failed, passed, skipped
from repro.study.rates import Finding

ENDED = "processes agree"
STEPS = 3
PATIENCE = 120.0  # seconds for all of it: NCCL that does not get through hangs
SILENCE = 45  # seconds after which the processes themselves call one of them dead
WORKER = "repro.preflight.processes"


def launcher(gpus: int) -> list[str]:
    """What starts the processes: that of the machine's settings, else torchrun."""
    count = "gpu" if gpus else "2"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node={count}"
    return ["sh", "-c", f'exec {machine().launcher or torchrun} -m "$0"', WORKER]


def check_processes(setting: Setting) -> Iterator[Finding]:
    """A few steps in all processes, which must end with the same weights."""
    if machine().launcher == "python" or (setting.gpus == 1 and not machine().launcher):
        yield skipped("torchrun", "there is one process" if machine().launcher else "there is one GPU")
        return
    about = f"torchrun, {setting.gpus} GPUs, NCCL" if setting.gpus else "torchrun, 2 processes on the CPU, gloo"
    code, said = launch(launcher(setting.gpus), PATIENCE)
    found = [line for line in said.splitlines() if ENDED in line]
    remedy = "see whether each GPU works alone (CUDA_VISIBLE_DEVICES=0), then NCCL_DEBUG=INFO"
    if code is None:
        yield failed(about, f"did not end within {PATIENCE:.0f} s", remedy)
    elif code or not found:
        yield failed(about, f"ended with {code}: {on_one_line(_reason(said))[:300]}", remedy)
    else:
        yield passed(about, found[0])


def _reason(said: str) -> str:
    """Why processes ended: what one of them raised, else which one torchrun saw end."""
    lines = said.splitlines() or ["nothing was said"]
    of_torchrun, raises = "ChildFailedError", re.compile(r"(\[rank\d+\]: *)?[\w.]*Error: ")
    raised = [line for line in lines if raises.match(line) and of_torchrun not in line]
    ended = [line.partition("] ")[2] for line in lines if "failed (exitcode" in line]
    return [*raised[-1:], *ended, lines[-1]][0]


def launch(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code of a command, None where it did not end in time and was ended, with all that it had started; what it
    said."""
    with tempfile.TemporaryFile("w+") as output:
        environment = {"REPRO_PATIENCE": str(SILENCE)} | os.environ
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        try:
            code = process.wait(seconds)
        except (subprocess.TimeoutExpired, OutOfTimeError):
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes, which have groups of their own
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        output.seek(0)
        return code, output.read()


def train_together() -> str:
    """Steps of a small network on digits, shared among the processes; how many there are that agree on its weights.

    Raises AssertionError where they do not.
    """
    from repro.data.digits import Digits
    from repro.training.config import NetworkSettings, Pace, TrainingConfig, TrainingSettings
    from repro.training.trainer import drawn_ahead, initial

    world, rank = distributed.world_size(), distributed.rank()
    network = NetworkSettings(model_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    settings = TrainingSettings("preflight", network, batch_size=8 * world, ref_batches=1, rampup_Mimg=0)
    data, config = Digits(), TrainingConfig(settings, Pace(8 * world * STEPS, 8 * world, 8 * world))
    trainer = initial(settings, data, distributed.device())
    for drawn in drawn_ahead(config, data, range(0, config.pace.total_nimg, settings.batch_size)):
        trainer.step(d.encoded(data, True, trainer.device) for d in drawn)
    weights = sum(float(p.detach().double().abs().sum()) for p in trainer.network.parameters())
    everywhere = distributed.all_reduce_sum(weights * np.eye(world)[rank])
    assert np.allclose(everywhere, weights, rtol=1e-12), f"weights differ between processes: {everywhere}"
    return f"{world} {ENDED} on the weights after {STEPS} steps"


def main() -> None:
    distributed.init()
    said = train_together()
    distributed.barrier()
    distributed.print0(said)


if __name__ == "__main__":
    main()
