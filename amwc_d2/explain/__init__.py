"""Why a segmentation is what it is, and corrections by hand, on the region graph of its energy."""

from amwc_d2.explain.corrections import Correction, correct
from amwc_d2.explain.region_graph import RegionGraph, region_graph

__all__ = ["Correction", "RegionGraph", "correct", "region_graph"]
