"""Bytes on disk: files that are written completely or not at all, and sealed safetensors files."""
