"""Selection of the units to remove: orders of removal, limits, the knapsack, and structurally identical groups."""
