"""What the gateway does at length and in numbers. Run with ``python -m benchmarks``."""
