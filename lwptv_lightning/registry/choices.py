"""The names that options of pruning can take; imported without torch, so that the command line's help is quick."""

GRANULARITIES = ("block", "module", "tensor")
"""What a layer is."""
RANKINGS = ("task", "all")
"""Whether layers are ranked for each task or over all tasks."""
COUNTS = ("layers", "parameters")
"""What the ratio to prune counts."""
