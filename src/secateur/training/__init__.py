"""Training: what tunes weights by gradients."""
