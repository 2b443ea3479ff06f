"""Models in folders of transformers: pruned layer by layer, from a folder to a smaller folder."""
