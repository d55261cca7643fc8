"""What measures cost: each file is run as ``python -m benchmarks.NAME [--json FILE]``."""
