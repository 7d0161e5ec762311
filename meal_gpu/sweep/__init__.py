"""Sweeps: strategies × seeds, a run folder each, several processes at once, resumable."""
