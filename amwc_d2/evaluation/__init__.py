"""Evaluation: evaluators, the metrics behind them, bounds on them, and the loop that runs them."""

from amwc_d2.evaluation.build import build_evaluator, grid_ceiling
from amwc_d2.evaluation.panoptic_evaluator import AMWCPanopticEvaluator

__all__ = ["AMWCPanopticEvaluator", "build_evaluator", "grid_ceiling"]
