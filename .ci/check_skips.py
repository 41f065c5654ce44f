"""Fail on any skipped test except for what the gate's machine cannot have: GPU, network, full-scale results."""

import re
import sys
from pathlib import Path

ALLOWED = ("needs a CUDA device", "needs the network", "no full-scale result")

lines = Path(sys.argv[1]).read_text().splitlines()
skips = [line for line in lines if re.match(r"SKIPPED \[\d+\]", line)]
unexpected = [line for line in skips if not any(reason in line for reason in ALLOWED)]
print(f"{len(skips)} kinds of skip, {len(unexpected)} unexpected")
if unexpected:
    sys.exit("unexpected skips:\n" + "\n".join(unexpected))
