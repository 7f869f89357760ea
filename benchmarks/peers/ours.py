"""The worker of this library: the Kronecker structure with all rows and with one pass, and the exact structure."""

import worker
from case import PRIOR_PRECISION, Batch
from torch import nn
from worker import Factory, Tool

from laplace_lora import LaplaceConfig, LaplaceLoRA

_SETTINGS: dict[str, dict[str, object]] = {
    "kron": {"structure": "kron", "fisher": "exact", "factor_rank": 64},
    "kron_one_pass": {"structure": "kron", "fisher": "rademacher", "factor_rank": 64},
    "exact": {"structure": "exact", "fisher": "exact"},
}


def factory(settings: dict[str, object]) -> Factory:
    """Return what makes the tool with these settings."""

    def make(model: nn.Module) -> Tool:
        # A frozen head is no part of the posterior, as in the tools that it is compared with.
        head = any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)
        config = LaplaceConfig(
            progress=False,
            prior_precision=PRIOR_PRECISION,
            include_modules_to_save=head,
            train_check_bytes=0,  # the others keep nothing with which to check a tuned prior
            **settings,
        )

        def fit(batches: list[Batch]) -> LaplaceLoRA:
            return LaplaceLoRA(model, config).fit(batches)

        return Tool(
            fit=fit,
            predict=lambda la, batch: la.predict(batch),
            covariance=lambda la, batch: la.predict(batch).covariance,
            stored_bytes=lambda la: la.posterior.nbytes,
        )

    return make


if __name__ == "__main__":
    worker.main({name: factory(settings) for name, settings in _SETTINGS.items()}, {}, ("torch", "peft"))
