"""Records as tables and lines of text."""
