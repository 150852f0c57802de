"""Calibration: text in, statistics of each layer's input out."""
