"""Other ways to calibrate an adapter, for comparison."""

from laplace_lora.methods.temperature import fit_temperature
from laplace_lora.methods.weight_sampling import weight_sampling

__all__ = ["fit_temperature", "weight_sampling"]
