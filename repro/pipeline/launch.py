"""Stages that share their work among processes, started again by the machine's launcher."""

import os

import torch

from metrics.machine import machine

SHARED = ("train", "networks", "generate", "features", "sweep")
ALL_GPUS = "torchrun --standalone --nproc-per-node=gpu"
#: Environment variable of a stage that was started by the launcher.
LAUNCHED = "REPRO_LAUNCHED"


def relaunch(stage: str, key: str) -> None:
    """Become the launcher's command for a stage that shares its work; returns where there is nothing to launch.

    The launcher is a line of shell, so that it can hold what a scheduler settles, such as $SLURM_NNODES.
    """
    if stage not in SHARED or {"RANK", LAUNCHED} & os.environ.keys():
        return
    launcher = machine().launcher or ("python" if torch.cuda.device_count() < 2 else ALL_GPUS)
    if launcher != "python":
        environment = os.environ | {LAUNCHED: "1"}
        os.execvpe("sh", ["sh", "-c", f'exec {launcher} -m repro stage "$0" "$1"', stage, key], environment)
