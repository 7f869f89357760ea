"""BALD: what one example's label would tell of the weights."""

from torch import Tensor

from laplace_lora.acquisition.base import require_scores
from laplace_lora.predictive import Predictive


def bald(predictive: Predictive) -> Tensor:
    """Score by I(y ; theta) = H[E p(y | theta)] - E H[p(y | theta)] (Houlsby et al., arXiv:1112.5745).

    Examples are scored one by one: two of the same kind tell the same twice, and both rank high.

    Args:
        predictive: Of B examples.

    Returns:
        (B,) mutual information in nats; of real outputs 1/2 log(1 + variance / noise variance).
    """
    return require_scores(predictive.mutual_information, "bald")
