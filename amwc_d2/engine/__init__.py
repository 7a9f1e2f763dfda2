"""Training and what runs around it: trainer, processes, checkpoints, timing, the command line."""
