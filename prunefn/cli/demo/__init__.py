"""`prunefn demo`: train two small networks, prune them in several ways, and say what it cost."""
