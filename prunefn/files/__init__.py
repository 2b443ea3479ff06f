"""Bytes on disk: files that are whole or not there, and safetensors whose every bit is accounted for."""
