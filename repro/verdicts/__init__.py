"""What was measured, and what that says of published values and claims."""

from repro.verdicts.published import verify
from repro.verdicts.regression import check

__all__ = ["check", "verify"]
