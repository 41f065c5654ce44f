"""Run the benchmarks (all, or those named): ours against a straightforward baseline, outputs asserted equal."""

import subprocess
import sys
from pathlib import Path

from benchmarks._hardware import hardware

print(hardware(), flush=True)
available = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
for name in sys.argv[1:] or available:
    if name not in available:
        sys.exit(f"no benchmark '{name}', expected one of {', '.join(available)}")
    print(f"\n--- {name}", flush=True)
    # A process of its own: memory that one benchmark takes must not count as another's peak.
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
