"""Data: datasets in panoptic format, their registration, and the targets made of them."""
