"""Calibration: text or sounds in, statistics of each layer's input out."""
