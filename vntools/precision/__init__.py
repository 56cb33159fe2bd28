"""Precision as types in the graph."""
