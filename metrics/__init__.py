"""Measures images: FID, FD_DINOv2 and their companions, from any folder, archive or training loop."""

from metrics.evaluation import Extractor, compare, evaluate, evaluate_sets
from metrics.evaluator import Evaluator
from metrics.measure import Options
from metrics.results import Results

__all__ = ["Evaluator", "Extractor", "Options", "Results", "compare", "evaluate", "evaluate_sets"]
