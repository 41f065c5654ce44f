"""What was measured, and what that says of published values and claims."""

from repro.verdicts.published import verify
from repro.verdicts.regression import check
from repro.verdicts.repeats import counted, side_by_side

__all__ = ["check", "counted", "side_by_side", "verify"]
