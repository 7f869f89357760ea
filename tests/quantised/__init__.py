"""Adapters on quantised bases, against the same adapters on the dequantised weights."""
