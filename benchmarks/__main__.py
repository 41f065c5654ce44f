"""Run the benchmarks (all, or those named): ours against a straightforward baseline, outputs asserted equal."""

import importlib
import sys
from pathlib import Path

available = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
for name in sys.argv[1:] or available:
    if name not in available:
        sys.exit(f"no benchmark '{name}', expected one of {', '.join(available)}")
    print(f"\n--- {name}", flush=True)
    importlib.import_module(f"benchmarks.{name}").main()
