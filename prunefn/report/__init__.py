"""Tables and pictures of what was pruned. Data in, text or files out."""
