"""The pass over the training data: every batch's gradients folded into one curvature."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from laplace_lora.adapters import Site
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature
from laplace_lora.curvature.hashing import digest_numbers, example_uniform, input_digests
from laplace_lora.curvature.train_check import TrainCheck, TrainCheckExamples
from laplace_lora.errors import LaplaceLoRAError, UnsupportedInputError
from laplace_lora.finite import require_finite
from laplace_lora.jacobians import HeadPass, JacobianPass, SiteGradient, jacobian_pass, statistics_dtype
from laplace_lora.likelihoods import Likelihood
from laplace_lora.readouts import Readout, split_labels


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What one pass over the training data leaves behind, beside the curvature.

    Attributes:
        examples: Number of training examples, N.
        classes: Number of logits, K.
        log_likelihood: log p(D | theta*) in nats, or None without labels.
        accuracy: Share of training examples that the trained adapter gets right, or None without labels
            or classes.
        inputs: (N,) int64 numbers that the examples' inputs are known by again, in ascending order.
    """

    examples: int
    classes: int
    log_likelihood: float | None
    accuracy: float | None
    inputs: Tensor

    @property
    def nll(self) -> float | None:
        """Mean negative log-likelihood of the trained adapter on these examples, in nats, or None without labels."""
        return None if self.log_likelihood is None else -self.log_likelihood / self.examples

    def seen(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Say which inputs of a batch were among the training examples.

        Args:
            batch: Model inputs, without labels.

        Returns:
            (B,) bool.
        """
        return torch.isin(digest_numbers(input_digests(batch)), self.inputs)


class _Tally:
    """Counts examples and adds up what their labels say of the trained adapter."""

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood
        self.examples = 0
        self.labelled = 0
        self.log_likelihood = 0.0
        self.correct = 0

    def add(self, logits: Tensor, labels: Tensor | None) -> None:
        self.examples += len(logits)
        if labels is not None:
            self.labelled += len(logits)
            self.log_likelihood += float(self.likelihood.log_likelihood(logits, labels).sum())
            if self.likelihood.shift_invariant:
                self.correct += int((logits.argmax(dim=-1) == labels).sum())
        if self.labelled not in (0, self.examples):
            raise UnsupportedInputError("some batches have labels and some have none; give labels with all or none.")


def fit_curvature(
    model: nn.Module,
    sites: Sequence[Site],
    curvature: Curvature,
    config: LaplaceConfig,
    readout: Readout,
    likelihood: Likelihood,
    loader: Iterable[Mapping[str, Any]],
) -> tuple[FitResult, TrainCheckExamples | None, str | None]:
    """Fold a data set into a curvature. The loader is read once.

    Args:
        model: The PEFT model.
        sites: The weight matrices.
        curvature: The fold, empty; it takes up the data.
        config: Settings.
        readout: How logits are read from the model.
        likelihood: Gives the GGN's rows.
        loader: Training batches.

    Returns:
        What was seen; a sample of training Jacobians if there were labels; the padding side seen.

    Raises:
        LaplaceLoRAError: The loader is empty.
    """
    device = next(model.parameters()).device
    tally = _Tally(likelihood)
    check = TrainCheck(sum(site.size for site in sites), config.train_check_bytes)
    classes, side = 0, None
    numbers: list[Tensor] = []
    last_layer = config.structure == "last_layer"
    with jacobian_pass(model, sites, lambda b: readout.logits(model, b), last_layer=last_layer) as runner:
        for batch in tqdm(loader, desc="fit", unit="batch", disable=not config.progress):
            inputs, labels = split_labels(batch, device)
            logits = runner.forward(inputs)
            require_finite(logits, model, partial(readout.logits, model, inputs))
            if tally.examples == 0:
                classes = _check_classes(logits, config)
                curvature.dtype = statistics_dtype(logits.dtype)
                curvature.check_memory(_rows_per_example(logits, config, likelihood), _total_examples(loader, logits))
            tally.add(logits, labels)
            side = side or _padding_side(inputs)
            directions, weights = _rows(config, likelihood, logits, inputs)
            digests = input_digests(inputs)
            numbers.append(digest_numbers(digests))
            keep = labels is not None and likelihood.shift_invariant
            if keep:
                assert labels is not None
                check.begin(digests, logits, labels, directions)
            _fold_batch(runner, directions, weights, curvature, check if keep else None)
    if tally.examples == 0:
        raise LaplaceLoRAError("the loader gave no batch; check the data, or make a new generator for every fit.")
    labelled = tally.labelled > 0
    result = FitResult(
        examples=tally.examples,
        classes=classes,
        log_likelihood=tally.log_likelihood if labelled else None,
        accuracy=tally.correct / tally.examples if labelled and likelihood.shift_invariant else None,
        inputs=torch.cat(numbers).sort().values,
    )
    return result, check.finalise(tally.examples), side


def _fold_batch(
    runner: JacobianPass | HeadPass, directions: Tensor, weights: Tensor, curvature: Curvature, check: TrainCheck | None
) -> None:
    def receive(gradient: SiteGradient) -> None:
        curvature.update(gradient, weights[:, gradient.row])
        if check is not None:
            check.update(gradient)

    runner.rows(directions, receive)


def _rows(
    config: LaplaceConfig, likelihood: Likelihood, logits: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    fisher = config.fisher_for(logits.shape[-1])
    if fisher == "exact":
        return likelihood.root(logits)
    uniform = example_uniform(inputs, config.seed, logits.shape[-1]).to(logits.device)
    return likelihood.one_pass(logits, fisher, uniform)


def _rows_per_example(logits: Tensor, config: LaplaceConfig, likelihood: Likelihood) -> int:
    classes = logits.shape[-1]
    return likelihood.contrasts(classes).shape[-1] if config.fisher_for(classes) == "exact" else 1


def _check_classes(logits: Tensor, config: LaplaceConfig) -> int:
    classes = logits.shape[-1]
    categorical = config.likelihood == "categorical"
    if categorical and classes < 2:
        raise UnsupportedInputError(
            "the model has one logit, and a softmax over one class is constant; use a head with at least two classes, "
            "or likelihood='gaussian'."
        )
    if config.structure == "exact" and config.fisher_for(classes) != "exact" and classes > (2 if categorical else 1):
        raise LaplaceLoRAError(
            f"structure='exact' with fisher={config.fisher!r} and {classes} classes would not be exact: one random row "
            "per example is unbiased for the GGN, not for its inverse; use fisher='exact' or structure='kron'."
        )
    return classes


def _total_examples(loader: Any, logits: Tensor) -> int | None:
    """Return the most examples that are to come, where the loader says so."""
    bounds = []
    sources: tuple[tuple[Any, int], ...] = ((getattr(loader, "dataset", None), 1), (loader, len(logits)))
    for items, each in sources:
        try:
            bounds.append(len(items) * each)
        except TypeError:  # a generator, or a loader over a stream
            continue
    return min(bounds, default=None)


def _padding_side(inputs: Mapping[str, Tensor]) -> str | None:
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()):
        return None
    return "left" if bool((mask[:, 0] == 0).any()) else "right"
