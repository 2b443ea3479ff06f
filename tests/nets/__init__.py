"""Blocks of random networks: each a small recipe that can be printed and read."""
