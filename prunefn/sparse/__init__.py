"""Sparse weights: weight masks, parameter → bool of its shape, True = kept, as `train.optimizer.hold_zero` takes them."""

from .slices import apply_sparse, slice_order, slice_scores, slices

__all__ = ["apply_sparse", "slice_order", "slice_scores", "slices"]
