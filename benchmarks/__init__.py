"""Benchmarks; run each as a module, `python -m benchmarks.X`."""
