"""Real pictures, and a backbone that knows ImageNet."""
