"""Tables and pictures of pruned networks: data in, text or files out."""
