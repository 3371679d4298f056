"""Architectures, each described once as a Program."""
