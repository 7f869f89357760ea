"""Interim stand-in, to be replaced by the deterministic rules."""

import torch
from torch import Tensor


def expected_softmax(mean: Tensor, covariance: Tensor, points: int = 4096) -> tuple[Tensor, Tensor]:
    """Interim."""
    z = torch.special.ndtri(torch.quasirandom.SobolEngine(mean.shape[1], scramble=True, seed=0).draw(points, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    v, u = torch.linalg.eigh(covariance)
    r = u * v.clamp(min=0).sqrt()[:, None, :]
    p = torch.softmax(mean + torch.einsum("bij,sj->sbi", r, z), -1)
    return p.mean(0), torch.special.entr(p).sum(-1).mean(0)
