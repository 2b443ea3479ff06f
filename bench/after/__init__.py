"""After training: top-1 of pruned networks after 0, 200 and 2000 steps, ours beside Torch-Pruning's."""
