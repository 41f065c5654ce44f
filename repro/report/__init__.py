"""Tables, figures and the page of a study."""

from repro.report.write import publish, report, summary

__all__ = ["publish", "report", "summary"]
