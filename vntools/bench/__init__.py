"""Measuring a runner by trtexec's definitions."""
