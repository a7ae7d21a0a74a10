"""Parts shared by the benchmarks of a distribution shift: training, evaluation and the results
page."""
