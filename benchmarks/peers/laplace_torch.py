"""The worker of laplace-torch, used as its Hugging Face guide says: a wrapper whose forward takes the batch.

The default backend (Curvlinops, all rows of the GGN), the same with one sampled label per text, and the ASDL backend.
Predictions are the default ones (``pred_type="glm"``, ``link_approx="probit"``), which compute the full Gaussian over
the logits on the way.
"""

from collections.abc import Callable, Iterator
from typing import Any

import worker
from case import PRIOR_PRECISION, Batch, Case
from laplace import Laplace, curvature
from torch import Tensor, nn
from worker import Factory, Probe, Tool, tensor_bytes

_PACKAGES = ("laplace-torch", "curvlinops-for-pytorch", "asdfghjkl", "torch", "transformers", "peft", "numpy")


class Wrapper(nn.Module):
    """Takes the batch as one argument and returns the logits, as laplace-torch asks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.hf_model = model

    def forward(self, data: Batch) -> Tensor:
        """Return (B, K) logits."""
        return self.hf_model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits


class Loader:
    """Batches with the ``dataset`` whose length laplace-torch reads."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.dataset = range(sum(len(batch["labels"]) for batch in batches))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def fit_with(model: nn.Module, batches: list[Batch], backend: str, settings: dict[str, Any]) -> Any:
    """Fit a Kronecker-factored posterior over all weights that require a gradient."""
    la = Laplace(
        Wrapper(model).eval(),
        likelihood="classification",
        subset_of_weights="all",
        hessian_structure="kron",
        prior_precision=PRIOR_PRECISION,
        backend=getattr(curvature, backend),
        backend_kwargs=settings,
    )
    la.fit(Loader(batches))
    return la


def factory(backend: str, **settings: Any) -> Factory:
    """Return what makes the tool with one backend."""

    def make(model: nn.Module) -> Tool:
        return Tool(
            fit=lambda batches: fit_with(model, batches, backend, settings),
            predict=lambda la, batch: la(batch, pred_type="glm", link_approx="probit"),
            # For classification only the probabilities are public; this is what they are computed from.
            covariance=lambda la, batch: la._glm_predictive_distribution(batch)[1],
            stored_bytes=stored_bytes,
        )

    return make


def stored_bytes(la: Any) -> int:
    """Count the factors (kept to go on fitting), their decomposition, and the mean."""
    return tensor_bytes([la.H_facs.kfacs, la.H.eigenvectors, la.H.eigenvalues, la.mean])


def backend_probe(backend: str) -> Callable[[nn.Module, Case], Any]:
    """Return a call that fits with another backend."""
    return lambda model, case: fit_with(model, [case.tiny], backend, {})


FACTORIES: dict[str, Factory] = {
    "default": factory("CurvlinopsGGN"),
    "one_sample": factory("CurvlinopsGGN", stochastic=True),
    "asdl": factory("AsdlGGN"),
}
PROBES: dict[str, Probe] = {name: backend_probe(name) for name in ("BackPackGGN", "AsdfghjklGGN")}

if __name__ == "__main__":
    worker.main(FACTORIES, PROBES, _PACKAGES)
