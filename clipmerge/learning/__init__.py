"""The calibration loss as a function of the weights, and learning on it."""
