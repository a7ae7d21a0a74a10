"""Fashion-MNIST and corruptions: a second, cheaper distribution shift."""
