"""Passes: one file each, discovered by file name."""
