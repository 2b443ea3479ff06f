"""Retention: top-1 right after pruning, before any fine-tuning, of four networks trained here from scratch on Fashion-MNIST."""
