"""What the benchmarks of a distribution shift share: training, evaluation and the results page."""
