"""What every room stands on: errors, artifacts, optional imports, provenance."""
