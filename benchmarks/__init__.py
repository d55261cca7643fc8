"""Measurements of cost; run each file as ``python -m benchmarks.NAME [--json FILE]``."""
