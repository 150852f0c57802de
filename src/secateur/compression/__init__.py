"""What combines with pruning: quantization."""
