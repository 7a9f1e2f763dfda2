"""The losses: of the affinities (stage 1) and of panoptic quality through the solver (stage 2)."""
