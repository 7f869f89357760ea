"""Other ways to calibrate an adapter, for comparison."""

from laplace_lora.methods.temperature import fit_temperature

__all__ = ["fit_temperature"]
