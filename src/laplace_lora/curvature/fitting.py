"""The pass over the training data: every batch's gradients folded into one curvature."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from laplace_lora.adapters import Site
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature
from laplace_lora.curvature.hashing import (
    digest_numbers,
    example_digests,
    joined_digests,
    uniform_numbers,
)
from laplace_lora.curvature.tally import FitResult, Tally, row_digests
from laplace_lora.curvature.train_check import TrainCheck, TrainCheckExamples
from laplace_lora.errors import LaplaceLoRAError, UnsupportedInputError
from laplace_lora.jacobians import HeadPass, JacobianPass, MatrixGradient, jacobian_pass, statistics_dtype
from laplace_lora.likelihoods import Likelihood
from laplace_lora.readouts import Draw, ModelRows, Readout, split_labels


def fit_curvature(
    model: nn.Module,
    sites: Sequence[Site],
    curvature: Curvature,
    config: LaplaceConfig,
    readout: Readout,
    likelihood: Likelihood,
    loader: Iterable[Mapping[str, Any]],
) -> tuple[FitResult, TrainCheckExamples | None, str | None]:
    """Fold a data set into a curvature. The loader is read once; see :mod:`laplace_lora.curvature.further_passes`.

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
    tally = Tally(likelihood)
    check = TrainCheck(sum(site.size for site in sites), config.train_check_bytes)
    classes, side = 0, None
    numbers: list[Tensor] = []
    runner_of = jacobian_pass(model, sites, readout, head_only=head_only(config, readout))
    with _or_discarded(curvature), torch.inference_mode(False), runner_of as runner:
        for batch in tqdm(loader, desc="fit", unit="batch", disable=not config.progress):
            inputs, given = split_labels(batch, device)
            rows = readout.rows(inputs, given)
            labels = readout.labels(rows, given)
            # Before the forward pass: on a GPU reading the inputs back would wait for it.
            digests = row_digests(rows)
            numbers.append(digest_numbers(digests))
            reading = runner.forward(rows, draw_of(config, readout, rows))
            logits = reading.logits
            classes = max(classes, logits.shape[-1])
            if tally.examples == 0:
                _check_classes(logits, config, readout)
                curvature.dtype = statistics_dtype(logits.dtype)
                each = _rows_per_example(logits, config, readout, likelihood)
                curvature.check_memory(each, _total_examples(loader, logits))
            tally.add(reading, labels)
            side = side or _padding_side(rows.inputs)
            directions, weights = directions_of(config, readout, likelihood, logits, labels, rows)
            keep = labels is not None and likelihood.shift_invariant
            if keep:
                assert labels is not None
                check.begin(digests, logits, labels, directions)
            fold_batch(runner, directions, weights, curvature, check if keep else None)
    if tally.examples == 0:
        raise LaplaceLoRAError("the loader gave no batch; check the data, or make a new generator for every fit.")
    return tally.result(classes, torch.cat(numbers).sort().values), check.finalise(tally.examples), side


@contextlib.contextmanager
def _or_discarded(curvature: Curvature) -> Iterator[None]:
    """Let go of what a fold holds outside memory if a pass ends early: a traceback's frames may outlive it."""
    try:
        yield
    except BaseException:
        curvature.discard()
        raise


def head_only(config: LaplaceConfig, readout: Readout) -> bool:
    """Say whether the posterior is that of a classification head, whose Jacobian takes no backward pass.

    Args:
        config: Settings.
        readout: How logits are read.

    Returns:
        Whether it is.
    """
    return config.structure == "last_layer" and readout.reads_head


def backward_passes(config: LaplaceConfig, readout: Readout, classes: int, *, fitting: bool = False) -> int:
    """Count the backward passes that one batch takes.

    Args:
        config: Settings.
        readout: How logits are read.
        classes: K.
        fitting: Whether the batch is fitted to, not predicted.

    Returns:
        K-1; 1 where every option has a row of its own, there is one output, or the Fisher takes one pass; 0 for a
        classification head alone.
    """
    if head_only(config, readout):
        return 0
    if readout.separate or readout.likelihood in ("gaussian", "tokens"):
        return 1
    if fitting and config.fisher_for(classes, readout.name) != "exact":
        return 1
    return classes if config.likelihood == "gaussian" else classes - 1


def fold_batch(
    runner: JacobianPass | HeadPass, directions: Tensor, weights: Tensor, curvature: Curvature, check: TrainCheck | None
) -> None:
    """Run a batch's backward passes and hand every gradient on.

    Args:
        runner: After the batch's forward pass.
        directions: (B, K, M) of the logits.
        weights: (B, M) of the directions.
        curvature: Takes the gradients.
        check: Takes them too, if it is to keep some.
    """

    def receive(gradient: MatrixGradient) -> None:
        curvature.update(gradient, weights[:, gradient.row])
        if check is not None:
            check.update(gradient)

    runner.rows(directions, receive)
    curvature.end_batch()


def draw_of(config: LaplaceConfig, readout: Readout, rows: ModelRows) -> Draw | None:
    """Return the random numbers from which a readout that is a likelihood of its own samples labels.

    Args:
        config: Settings.
        readout: How logits are read.
        rows: The batch as the model sees it.

    Returns:
        What draws them for every example, or None where no label is sampled so.
    """
    if readout.likelihood != "tokens" or config.fisher_for(1, readout.name) == "empirical":
        return None
    digests = example_digests(rows.inputs, config.seed)

    def draw(count: int) -> Tensor:
        return uniform_numbers(digests, count)

    return draw


def directions_of(
    config: LaplaceConfig,
    readout: Readout,
    likelihood: Likelihood,
    logits: Tensor,
    labels: Tensor | None,
    rows: ModelRows,
) -> tuple[Tensor, Tensor]:
    """Return the rows of the GGN of a batch, as directions of its logits.

    Args:
        config: Says the Fisher.
        readout: How logits are read.
        likelihood: Gives the GGN's root.
        logits: (B, K).
        labels: (B,), or None.
        rows: The batch as the model sees it, by which random signs and labels are drawn.

    Returns:
        (B, K, M) unit directions and their (B, M) weights.

    Raises:
        UnsupportedInputError: The Fisher is made of labels, and there are none.
    """
    fisher = config.fisher_for(logits.shape[-1], readout.name)
    if fisher == "exact" or readout.likelihood == "tokens":
        return likelihood.root(logits)
    if fisher == "empirical":
        if labels is None:
            raise UnsupportedInputError("fisher='empirical' is made of the data's labels; give labelled batches.")
        return likelihood.empirical(logits, labels)
    digests = example_digests(rows.inputs, config.seed)
    if rows.places is not None:
        digests = joined_digests(digests, rows.places.place, rows.examples, rows.places.options)
    return likelihood.one_pass(logits, fisher, uniform_numbers(digests, logits.shape[-1]).to(logits.device))


def _rows_per_example(logits: Tensor, config: LaplaceConfig, readout: Readout, likelihood: Likelihood) -> int:
    classes = logits.shape[-1]
    exact = config.fisher_for(classes, readout.name) == "exact"
    return likelihood.contrasts(classes).shape[-1] if exact else 1


def _check_classes(logits: Tensor, config: LaplaceConfig, readout: Readout) -> None:
    classes = logits.shape[-1]
    fisher = config.fisher_for(classes, readout.name)
    if readout.likelihood == "tokens":
        if fisher not in ("mc", "empirical"):
            raise LaplaceLoRAError(
                f"fisher={config.fisher!r} would take a backward pass for every token of the vocabulary; use "
                "fisher='mc' or 'empirical' with NextToken."
            )
        if config.structure == "exact":
            raise LaplaceLoRAError(
                f"structure='exact' with fisher={fisher!r} would not be exact: one random row per text is unbiased for "
                "the GGN, not for its inverse; use structure='kron' or 'diag' with NextToken."
            )
        return
    if readout.separate and config.kfac == "reduce" and config.structure in ("kron", "kron_svd", "ekfac", "last_layer"):
        raise LaplaceLoRAError(
            f"kfac='reduce' would average the inputs of an example's options, which {readout!r} compares; use "
            "kfac='fitted'."
        )
    categorical = config.likelihood == "categorical" and readout.likelihood != "gaussian"
    if categorical and classes < 2:
        raise UnsupportedInputError(
            "the model has one logit, and a softmax over one class is constant; use a head with at least two classes, "
            "or likelihood='gaussian'."
        )
    if config.structure == "exact" and fisher == "empirical":
        raise LaplaceLoRAError(
            "structure='exact' with fisher='empirical' would not be the GGN; use fisher='exact' or structure='kron'."
        )
    # With two classes or one real output a random sign leaves the row as it is; a sampled label does not.
    exact = fisher == "exact" or (fisher == "rademacher" and classes <= (2 if categorical else 1))
    if config.structure == "exact" and not exact:
        raise LaplaceLoRAError(
            f"structure='exact' with fisher={config.fisher!r} and {classes} classes would not be exact: one random row "
            "per example is unbiased for the GGN, not for its inverse; use fisher='exact' or structure='kron'."
        )


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
