"""Which units go: orders of removal, limits, the knapsack, and what is alike."""
