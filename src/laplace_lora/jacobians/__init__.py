"""A model pass, turned into per-example Jacobians module by module; shared by curvature and predictive."""

from laplace_lora.jacobians.gradients import MatrixGradient, SiteGradient, statistics_dtype
from laplace_lora.jacobians.head_pass import HeadPass
from laplace_lora.jacobians.passes import JacobianPass
from laplace_lora.jacobians.prepared import evaluating, jacobian_pass

__all__ = [
    "HeadPass",
    "JacobianPass",
    "MatrixGradient",
    "SiteGradient",
    "evaluating",
    "jacobian_pass",
    "statistics_dtype",
]
