"""Interim."""
from torch import Tensor


def probit(mean: Tensor, covariance: Tensor) -> Tensor:
    """Interim."""
    return mean.softmax(-1)
