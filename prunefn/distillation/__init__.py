"""Distillation: training without labels towards the outputs of the dense network."""
