"""What is measured of the library, in units of the model's own passes."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from meter import Call, Meter, describe_failure, median_ratio
from record import Record
from shapes import Shape, answer_tokens, make_batch
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA, laplace
from laplace_lora.curvature import KroneckerCurvature, fit_curvature
from laplace_lora.likelihoods import contrast_basis
from laplace_lora.readouts import AnswerTokens
from laplace_lora.structures import STRUCTURES

STRUCTURE_NAMES = tuple(STRUCTURES)
MEASURED = ("kron", "diag", "exact", "last_layer")
FISHERS = ("exact", "rademacher", "mc")
LEAST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        model: The PEFT model.
        shape: Its sizes.
        meter: Measures calls.
        record: Keeps what was measured.
        repeats: Most rounds per measurement.
        factor_rank: Rank of sketched Kronecker factors.
    """

    model: nn.Module
    shape: Shape
    meter: Meter
    record: Record
    repeats: int
    factor_rank: int

    def batch(self, classes: int, size: int, seed: int = 0) -> dict[str, Tensor]:
        """Draw a batch."""
        return make_batch(self.shape, classes, size, seed, self.meter.device)

    def estimator(self, classes: int, structure: str, fisher: str = "exact") -> LaplaceLoRA:
        """Make an estimator that is not fitted yet."""
        settings: dict[str, Any] = {"structure": structure, "fisher": fisher, "progress": False, "train_check_bytes": 0}
        if issubclass(STRUCTURES[structure].curvature, KroneckerCurvature):
            settings["factor_rank"] = self.factor_rank
        readout = AnswerTokens(answer_tokens(self.shape, classes))
        return LaplaceLoRA(self.model, LaplaceConfig(**settings), readout=readout)

    def attempt(self, name: str, call: Callable[[], Any]) -> tuple[Any, str | None]:
        """Make a call; on failure return what it raised, and let go of what it held."""
        failure = None
        try:
            return call(), None
        except Exception as error:
            # Whatever it is, out of memory included: the run goes on, and the table says it.
            failure = describe_failure(error)
        self.meter.release()
        self.record.skip(name, failure)
        return None, failure


def references(bench: Bench, batch: Mapping[str, Tensor], classes: int) -> dict[str, Call]:
    """Return the model's own passes: a forward pass; 1 forward and K-1 backward; a training step without optimizer."""
    tokens = torch.tensor(answer_tokens(bench.shape, classes), device=bench.meter.device)
    contrasts = contrast_basis(classes).float().to(bench.meter.device)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    trained = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]

    def logits() -> Tensor:
        # The vocabulary's logits at the last position alone, as the library reads them.
        return bench.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, tokens].float()

    def forward() -> None:
        with torch.no_grad():
            logits()

    def passes() -> None:
        values = (logits() @ contrasts).sum(dim=0)
        for k in range(classes - 1):
            torch.autograd.grad(values[k], trained, retain_graph=k < classes - 2)

    def training_step() -> None:
        torch.autograd.grad(nn.functional.cross_entropy(logits(), batch["labels"]), trained)

    return {"forward": forward, "passes": passes, "training_step": training_step}


def fold(la: LaplaceLoRA, batch: Mapping[str, Tensor]) -> None:
    """Fit's share per batch: everything but the end of the fold, which comes once per data set."""
    covered = la._covered
    curvature = STRUCTURES[la.config.structure].curvature(covered.shapes, la.config)
    fit_curvature(la.model, covered.sites, curvature, la.config, la.readout, covered.reader.likelihood, [batch])


def fit_timed(bench: Bench, la: LaplaceLoRA, loader: list[dict[str, Tensor]]) -> float:
    """Fit, and return the seconds from the last batch to the posterior."""
    marks: list[float] = []

    def marked(*args: Any, **settings: Any) -> Any:
        found = fit_curvature(*args, **settings)
        bench.meter.synchronise()
        marks.append(time.perf_counter())
        return found

    with mock.patch.object(laplace, "fit_curvature", marked):
        la.fit(loader)
    bench.meter.synchronise()
    return time.perf_counter() - marks[0]


def finalise(bench: Bench, classes: int, structure: str, size: int) -> LaplaceLoRA | None:
    """Fit two batches; measure the end of the fit, its memory, the first evidence and the posterior's size."""
    name = f"K={classes} {structure}: fit of 2 batches"
    la = bench.estimator(classes, structure)
    if not bench.record.fits(name):
        return None
    loader = [bench.batch(classes, size, seed) for seed in (1, 2)]
    seconds: list[float] = []

    def fit() -> None:
        seconds.append(fit_timed(bench, la, loader))

    peak, failure = bench.attempt(name, lambda: bench.meter.peak_bytes(fit))
    if failure is not None:
        return None
    shared = {"classes": classes, "batch": size, "of": structure}
    stored = f"posterior {la.posterior.nbytes / 2**20:.1f} MiB"
    bench.record.add(**shared, what="finalise", seconds=seconds[0], peak_bytes=peak, note=f"peak of fit; {stored}")
    bench.record.measurements[-1]["stored_bytes"] = la.posterior.nbytes
    # ``exact`` decomposes its Gram matrix when it is first asked for something.
    evidence, failure = bench.attempt(f"{name}: evidence", lambda: bench.meter.seconds(la.log_marginal_likelihood))
    if failure is None:
        bench.record.add(**shared, what="first evidence", seconds=evidence)
    return la


def group(bench: Bench, la: LaplaceLoRA | None, classes: int, structure: str, size: int, share: float) -> None:
    """Measure predict and fit of one structure on one batch size, in turn with the model's own passes.

    Args:
        bench: What all measurements share.
        la: A fitted estimator, or None if that failed.
        classes: K.
        structure: The structure.
        size: B.
        share: Seconds that this measurement may take.
    """
    name = f"K={classes} B={size} {structure}"
    if not bench.record.fits(name):
        return
    bench.meter.release()
    batch = bench.batch(classes, size)
    estimators = {fisher: bench.estimator(classes, structure, fisher) for fisher in FISHERS}
    calls = references(bench, batch, classes)
    own = set(calls)
    if la is not None:
        calls["predict"] = lambda: la.predict(batch)
    for fisher, estimator in estimators.items():
        calls[f"fit {fisher}"] = lambda estimator=estimator: fold(estimator, batch)
    peaks: dict[str, int | None] = {}
    estimate = 0.0
    for what, call in list(calls.items()):
        _, failure = bench.attempt(f"{name}: {what}", call)  # warms up: kernels are chosen, tables are made
        if failure is None:
            start = time.perf_counter()
            peaks[what], failure = bench.attempt(f"{name}: {what}", lambda call=call: bench.meter.peak_bytes(call))
            estimate += time.perf_counter() - start
        if failure is not None:
            del calls[what]
    repeats = max(LEAST_REPEATS, min(bench.repeats, int(min(share, bench.record.remaining) / max(estimate, 1e-9))))
    if not bench.record.fits(f"{name}: {repeats} rounds", repeats * estimate):
        return
    seconds, failure = bench.attempt(name, lambda: bench.meter.interleaved(calls, repeats))
    if failure is not None:
        return
    for what in calls:
        bench.record.add(
            classes=classes,
            batch=size,
            of="reference" if what in own else structure,
            what=what,
            seconds=statistics.median(seconds[what]),
            over_forward=median_ratio(seconds, what, "forward"),
            over_passes=median_ratio(seconds, what, "passes"),
            over_training_step=median_ratio(seconds, what, "training_step"),
            peak_bytes=peaks[what],
            repeats=repeats,
        )


def integral(bench: Bench, classes: int, size: int) -> None:
    """Measure the step from Gaussian logits to probabilities by itself: many small kernels."""
    from laplace_lora.predictive import Predictive

    name = f"K={classes} B={size} integral"
    if not bench.record.fits(name):
        return
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(size, classes, generator=generator, dtype=torch.float64).to(bench.meter.device)
    root = torch.randn(size, classes, classes, generator=generator, dtype=torch.float64).to(bench.meter.device)

    def call() -> None:
        Predictive.from_gaussian(mean, root @ root.mT)

    if bench.attempt(name, call)[1] is None:
        seconds = statistics.median(bench.meter.seconds(call) for _ in range(bench.repeats))
        bench.record.add(classes=classes, batch=size, of="predict", what="its integral", seconds=seconds)


@contextlib.contextmanager
def fitted(bench: Bench, classes: int, structure: str, size: int) -> Iterator[LaplaceLoRA | None]:
    """Hold a fitted estimator for a while: the posteriors of all structures together might not fit."""
    la = finalise(bench, classes, structure, size)
    try:
        yield la
    finally:
        del la
        bench.meter.release()
