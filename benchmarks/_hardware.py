"""What figures were measured on."""

import os
import platform
import re
import sys
from pathlib import Path

import torch


def hardware() -> str:
    """What the figures below were measured on."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    parts = [f"{os.cpu_count()} x {names[0] if names else platform.processor()}", *gpus]
    return f"{', '.join(parts)}; python {platform.python_version()}, torch {torch.__version__}"
