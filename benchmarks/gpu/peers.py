"""The same measurements of laplace-torch and bayesian-lora, where they are installed and run at all.

They are given the LoRA on q_proj and v_proj alone: with the output embeddings they would hold a factor as wide as the
vocabulary. A factor pair per matrix is also what laplace-torch would have to decompose before it predicts with
``kron``, minutes at 4,096 wide; its predictions are therefore timed with ``diag``, whose passes are the same.
"""

import contextlib
import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from cases import Bench, references
from meter import Call, median_ratio
from shapes import answer_tokens
from torch import Tensor, nn
from transformers import BatchEncoding

#: Rank of bayesian-lora's large factors, its own documentation's choice.
N_KFAC = 10


class AnswerLogits(nn.Module):
    """A model of a batch whose outputs are the answers' logits, as laplace-torch wants it."""

    def __init__(self, model: nn.Module, tokens: list[int]) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokens

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K) logits."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, self.tokens].float()


class OneBatch(list[dict[str, Tensor]]):
    """A loader of one batch."""

    @property
    def dataset(self) -> range:
        """Something whose length is the number of examples."""
        return range(len(self[0]["labels"]))


def measure_peers(bench: Bench, classes: int, size: int) -> None:
    """Measure every peer on one batch; whatever one raises is recorded, and the next is tried.

    Args:
        bench: What all measurements share.
        classes: K.
        size: B.
    """
    for peer, module, make in (
        ("laplace-torch", "laplace", laplace_torch_calls),
        ("bayesian-lora", "bayesian_lora", bayesian_lora_calls),
    ):
        name = f"K={classes} B={size} {peer}"
        if not bench.record.fits(name):
            continue
        try:
            library = importlib.import_module(module)
        except Exception as error:  # an installed package may fail on import for want of another
            bench.record.skip(name, f"not installed or not importable ({type(error).__name__}: {error})")
            continue
        with without_head(bench.model):
            calls, failure = bench.attempt(name, lambda make=make, library=library: make(bench, library, classes, size))
            for what, call in calls.items() if failure is None else ():
                _measure(bench, peer, what, call, classes, size)
        bench.meter.release()


def laplace_torch_calls(bench: Bench, laplace: Any, classes: int, size: int) -> dict[str, Call]:
    """Return what laplace-torch is measured at."""
    batch = bench.batch(classes, size)
    model = AnswerLogits(bench.model, answer_tokens(bench.shape, classes)).eval()

    def new(structure: str) -> Any:
        return laplace.Laplace(model, "classification", subset_of_weights="all", hessian_structure=structure)

    kron, diag = new("kron"), new("diag")

    def predict() -> None:
        if getattr(diag, "n_data", 0) == 0:
            diag.fit(OneBatch([batch]))
        with torch.no_grad():
            diag(batch, pred_type="glm", link_approx="probit")

    return {
        "fit diag": lambda: new("diag").fit(OneBatch([batch])),
        # A batch's factors, without the decomposition at the end.
        "fit kron": lambda: kron.backend.kron(batch, batch["labels"], N=size),
        "predict (diag)": predict,
    }


def bayesian_lora_calls(bench: Bench, library: Any, classes: int, size: int) -> dict[str, Call]:
    """Return what bayesian-lora is measured at."""
    tokens = answer_tokens(bench.shape, classes)
    batch = bench.batch(classes, size)
    inputs = BatchEncoding({name: value for name, value in batch.items() if name != "labels"})
    device, rank = bench.meter.device, bench.shape.rank
    # Below this a factor is kept whole; it has to lie between the rank and the model's width.
    threshold = min(512, bench.shape.hidden)
    prior_variance = torch.tensor(1.0, device=device)

    def logits(outputs: Any) -> Tensor:
        return outputs.logits[:, -1, tokens].float()

    def forward(model: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
        chosen = {name: given[name] for name in ("input_ids", "attention_mask")}
        return logits(model(**chosen, logits_to_keep=1, use_cache=False))

    def fit() -> Any:
        try:
            return library.calculate_kronecker_factors(
                bench.model, forward, [batch], N_KFAC, threshold, ["q_proj.lora", "v_proj.lora"]
            )
        finally:
            bench.model.eval()  # it leaves the model in training mode
            bench.model.zero_grad()

    held: dict[str, Any] = {}

    def predict() -> None:
        if not held:
            held.update(library.cholesky_decompose_small_factors(fit(), threshold, device, torch.float32))
        main = importlib.import_module("bayesian_lora.main")
        jacobian, _ = main.jacobian_mean(bench.model, inputs, output_callback=logits)
        with torch.no_grad():
            library.variance(inputs, jacobian, held, prior_variance, classes, rank, N_KFAC, device)

    return {"fit kron": fit, "predict": predict}


@contextlib.contextmanager
def without_head(model: nn.Module) -> Iterator[None]:
    """Hold the LoRA of the output embeddings fixed."""
    head = [p for name, p in model.named_parameters() if "lm_head" in name and p.requires_grad]
    try:
        for parameter in head:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in head:
            parameter.requires_grad_(True)


def _measure(bench: Bench, peer: str, what: str, call: Callable[[], Any], classes: int, size: int) -> None:
    name = f"K={classes} B={size} {peer} {what}"
    if not bench.record.fits(name):
        return
    calls = references(bench, bench.batch(classes, size), classes)
    _, failure = bench.attempt(name, call)
    if failure is not None:
        return
    peak, failure = bench.attempt(name, lambda: bench.meter.peak_bytes(call))
    if failure is not None:
        return
    first = bench.meter.seconds(call)
    repeats = max(1, min(bench.repeats, int(0.05 * bench.record.remaining / max(first, 1e-9))))
    if not bench.record.fits(f"{name}: {repeats} rounds", repeats * first):
        return
    seconds, failure = bench.attempt(name, lambda: bench.meter.interleaved({**calls, what: call}, repeats))
    if failure is None:
        bench.record.add(
            classes=classes,
            batch=size,
            of=peer,
            what=what,
            seconds=statistics.median(seconds[what]),
            over_forward=median_ratio(seconds, what, "forward"),
            over_passes=median_ratio(seconds, what, "passes"),
            over_training_step=median_ratio(seconds, what, "training_step"),
            peak_bytes=peak,
            repeats=repeats,
        )
