"""Every rule from Gaussian logits to probabilities against a converged reference: error and time.

Random means and covariances, half of them of full rank and half of half the rank, at several posterior standard
deviations; all rules see the same cases. The reference is benchmarks/converged.py, whose own error is reported too.
Times are of the rules alone, in turn on one batch, and depend on no data.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import interleaved, write_results
from converged import POINTS_LOG2, SCRAMBLES, converged_softmax
from torch import Tensor

from laplace_lora.predictive import INTEGRATORS, laplace_bridge, probit

CLASSES = (2, 3, 4, 5, 8)
DEVIATIONS = (0.3, 1.0, 3.0, 10.0, 30.0)
TIMED_EXAMPLES = 100

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rules() -> dict[str, Rule]:
    """Return the rules under the names that the tables have; what does no averaging at all comes last."""
    found: dict[str, Rule] = {
        f"{name}, {points}": functools.partial(INTEGRATORS[name], points=points)
        for name, choices in (("integral", (512, 4096, 16_384)), ("mc", (1000, 10_000, 100_000)))
        for points in choices
    }
    # The closed form alone: the rule adds the integral, for the entropy.
    found["probit"] = lambda mean, covariance: (probit(mean, covariance), torch.zeros_like(mean[:, 0]))
    found["laplace_bridge"] = functools.partial(INTEGRATORS["laplace_bridge"], points=0)
    found["laplace_bridge, normalised"] = functools.partial(laplace_bridge, normalised=True)
    found["softmax of the mean"] = lambda mean, _: (torch.softmax(mean, dim=1), torch.zeros_like(mean[:, 0]))
    return found


def random_cases(classes: int, deviation: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw means (count, K) and covariances (count, K, K), the largest logit's standard deviation as given."""
    rng = np.random.default_rng([seed, classes, round(10 * deviation)])
    means = rng.normal(size=(count, classes)) * max(deviation, 1.0)
    covariances = []
    for index in range(count):
        rank = classes if index % 2 == 0 else max(1, classes // 2)
        root = rng.normal(size=(classes, rank))
        root *= deviation / np.sqrt(np.square(root).sum(axis=1).max())
        covariances.append(root @ root.T)
    return means, np.array(covariances)


def measure(classes: int, deviation: float, count: int, seed: int) -> dict[str, Any]:
    """Compare all rules with the reference on the cases of one size."""
    means, covariances = random_cases(classes, deviation, count, seed)
    pairs = [converged_softmax(*case) for case in zip(means, covariances, strict=True)]
    exact, error = (np.array(parts) for parts in zip(*pairs, strict=True))
    result: dict[str, Any] = {
        "classes": classes,
        "deviation": deviation,
        "cases": count,
        "reference_standard_error": {"mean": float(error.mean()), "worst": float(error.max())},
        "rules": {},
    }
    for name, rule in rules().items():
        found = rule(torch.tensor(means), torch.tensor(covariances))[0].numpy()
        gap = np.abs(found - exact)
        # Sum of p log(p / q): by how much the expected NLL of labels that follow p is worse, in nats.
        ratio = np.log(exact.clip(1e-300)) - np.log(found.clip(1e-300))
        result["rules"][name] = {
            "mean_error": float(gap.mean()),
            "worst_error": float(gap.max()),
            "excess_nll": float((exact * ratio).sum(axis=1).mean()),
        }
    return result


def timed(classes: int, repeats: int) -> dict[str, Any]:
    """Time all rules in turn on one batch; seconds per 1,000 examples."""
    means, covariances = (torch.tensor(x) for x in random_cases(classes, 3.0, TIMED_EXAMPLES, 1))
    calls = {name: functools.partial(rule, means, covariances) for name, rule in rules().items()}
    seconds = interleaved(calls, repeats)
    scale = 1000 / TIMED_EXAMPLES
    return {"classes": classes, "seconds": {name: scale * statistics.median(s) for name, s in seconds.items()}}


def main() -> None:
    """Measure every number of classes and every deviation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12, help="cases per class count and deviation (default: 12)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the times (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = [timed(classes, options.repeats) for classes in CLASSES]
    cells = [measure(classes, sd, options.cases, options.seed) for classes in CLASSES for sd in DEVIATIONS]
    settings = {"points": 2**POINTS_LOG2, "scrambles": SCRAMBLES}
    write_results("integrators", {"reference": settings, "times": times, "errors": cells}, show=False)


if __name__ == "__main__":
    main()
