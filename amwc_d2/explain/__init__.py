"""Why a segmentation is what it is, and corrections by hand, on the region graph of its energy."""

from amwc_d2.explain.clicks import Clicks, read_clicks
from amwc_d2.explain.corrections import Correction, correct
from amwc_d2.explain.energies import Change, easiest_changes
from amwc_d2.explain.explanation import Explanation, explain
from amwc_d2.explain.region_graph import RegionGraph, region_graph

__all__ = [
    "Change",
    "Clicks",
    "Correction",
    "Explanation",
    "RegionGraph",
    "correct",
    "easiest_changes",
    "explain",
    "read_clicks",
    "region_graph",
]
