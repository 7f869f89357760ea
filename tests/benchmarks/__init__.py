"""Benchmarks that are meant for other machines run here, at a size at which their figures mean nothing."""
