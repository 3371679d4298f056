"""Formats on disk, read as QTensors."""
