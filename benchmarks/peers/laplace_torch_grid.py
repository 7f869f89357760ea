"""The worker of laplace-torch for grid_search.py: its own grid search, as one line of JSON on stdout.

``optimize_prior_precision(method="gridsearch")`` as documented, with its default predictive (probit); ``loss`` is given
so that every value's NLL can be read off.
"""

import argparse
import importlib.metadata
import json
import math
import time
import warnings
from pathlib import Path

import torch
from case import read_case, read_model
from laplace_torch import Loader, fit_with
from torch import Tensor

_PACKAGES = ("laplace-torch", "curvlinops-for-pytorch", "torch")


def main() -> None:
    """Fit, search, and print every value's NLL and what a value cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--precisions", type=float, nargs=2, required=True, help="smallest and largest")
    parser.add_argument("--values", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    case = read_case(options.folder, options.classes)
    la = fit_with(read_model(options.folder, options.classes), case.train, "CurvlinopsGGN", {})
    found: list[float] = []

    def mean_nll(probabilities: Tensor, labels: Tensor) -> Tensor:
        nll = torch.nn.functional.nll_loss(probabilities.double().log(), labels)
        found.append(float(nll))
        return nll

    smallest, largest = (math.log10(value) for value in options.precisions)
    start = time.perf_counter()
    la.optimize_prior_precision(
        pred_type="glm",
        method="gridsearch",
        val_loader=Loader([case.test]),
        log_prior_prec_min=smallest,
        log_prior_prec_max=largest,
        grid_size=options.values,
        loss=mean_nll,
    )
    seconds = time.perf_counter() - start
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in _PACKAGES}
    print(json.dumps({"seconds": seconds, "nll": found, "versions": versions}))


if __name__ == "__main__":
    main()
