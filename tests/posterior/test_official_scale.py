"""The authors' scale of K-FAC: expand, times the mean number of real tokens; padding enters nothing."""

import pytest
import torch

from laplace_lora.config import LaplaceConfig
from posterior.cases import close, dense_likelihood, posterior_of, random_data


@pytest.mark.parametrize("rank", [None, 1])
def test_it_is_expand_times_the_mean_number_of_tokens(rank: int | None) -> None:
    data = random_data(examples=5, tokens=6)
    tokens = float(data.mask.sum()) / len(data)
    assert 1.5 < tokens < 6.0, "ragged"
    official, expand = (
        posterior_of(LaplaceConfig(kfac=rule, factor_rank=rank), data, "shared")[0] for rule in ("official", "expand")
    )
    one = torch.ones(1, dtype=torch.float64)
    close(dense_likelihood(official, one), tokens * dense_likelihood(expand, one), 1e-8)
