"""Params and specs out of the functional world: modules, files."""
