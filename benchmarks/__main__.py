"""Run the benchmarks (all, or those named): ours against a straightforward baseline, outputs asserted equal."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch


def hardware() -> str:
    """What the figures below were measured on."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    parts = [f"{os.cpu_count()} x {names[0] if names else platform.processor()}", *gpus]
    return f"{', '.join(parts)}; python {platform.python_version()}, torch {torch.__version__}"


print(hardware(), flush=True)
available = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
for name in sys.argv[1:] or available:
    if name not in available:
        sys.exit(f"no benchmark '{name}', expected one of {', '.join(available)}")
    print(f"\n--- {name}", flush=True)
    # A process of its own: memory that one benchmark takes must not count as another's peak.
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
