"""Where the time of fit and predict goes: the costliest operators, kernel launches, and the library's own share."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from cases import Bench, fold
from torch.profiler import ProfilerActivity, profile, record_function

from laplace_lora.jacobians import SiteGradient
from laplace_lora.predictive import INTEGRATORS
from laplace_lora.structures import STRUCTURES

TOP = 15
INTEGRAL = "integral"


def print_profiles(bench: Bench, classes: int, size: int, structure: str) -> None:
    """Profile fit and predict of one structure, and print what was found.

    Args:
        bench: What all measurements share.
        classes: K.
        size: B.
        structure: The structure.
    """
    batch = bench.batch(classes, size)
    estimator = bench.estimator(classes, structure)
    la = bench.estimator(classes, structure)
    print_profile(bench, f"fit, {structure}, K={classes}, B={size}", structure, lambda: fold(estimator, batch))
    if bench.attempt("profile: fit", lambda: la.fit([batch]))[1] is None:
        name = f"predict, {structure}, K={classes}, B={size}"
        print_profile(bench, name, structure, lambda: la.predict(batch), type(la.posterior.accumulator(la._precision)))


def print_profile(
    bench: Bench, name: str, structure: str, call: Callable[[], Any], accumulator: type | None = None
) -> None:
    """Profile one call and print it."""
    if not bench.record.fits(f"profile: {name}") or bench.attempt(f"profile: {name}", call)[1] is not None:
        return
    cuda = bench.meter.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    places = [
        (SiteGradient, "jacobian", "Jacobians"),
        (STRUCTURES[structure].curvature, "update", "fold, Jacobians included"),
    ]
    if accumulator is not None:
        places.append((accumulator, "covariance", "covariance"))
    with labelled(places), profile(activities=activities) as found:
        with record_function("everything"):
            call()
        bench.meter.synchronise()
    events = list(found.key_averages())
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not _is_label(e)]
    host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    # On a GPU: time of kernels, also of those that autograd's threads launch. On a CPU: time of operators.
    busy = sum(map(_own, kernels)) if cuda else sum(e.self_cpu_time_total for e in host)
    by_label = {e.key: e for e in host}
    print(f"\n{name}: {busy / 1e3:.2f} ms on the {bench.meter.device.type}, {sum(e.count for e in kernels)} kernels")
    print(f"  wall clock under the profiler {by_label['everything'].cpu_time_total / 1e3:.2f} ms")
    labels = [*(label for _, _, label in places), INTEGRAL]
    for label in labels:
        if label in by_label:
            event = by_label[label]
            spent = _whole(event) if cuda else event.cpu_time_total
            host_ms = event.cpu_time_total / 1e3
            print(f"  {label}: {spent / 1e3:.2f} ms ({spent / busy:.1%}) in {event.count} calls, host {host_ms:.2f} ms")
    operators = [e for e in host if e.key not in {"everything", *labels}]
    print(f"  {'own ms':>9} {'share':>6} {'calls':>6}  operator")
    for event in sorted(operators, key=lambda e: _own(e) if cuda else e.self_cpu_time_total, reverse=True)[:TOP]:
        own = _own(event) if cuda else event.self_cpu_time_total
        print(f"  {own / 1e3:9.3f} {own / busy:6.1%} {event.count:6d}  {event.key[:80]}")


@contextlib.contextmanager
def labelled(places: list[tuple[Any, str, str]]) -> Iterator[None]:
    """Mark calls of functions in the profile, those from inside a backward pass included."""
    with contextlib.ExitStack() as stack:
        # The table of rules holds them by name; predictions look them up in it.
        marked = {name: _marked(rule, INTEGRAL) for name, rule in INTEGRATORS.items()}
        stack.enter_context(mock.patch.dict(INTEGRATORS, marked))
        for owner, attribute, label in places:
            stack.enter_context(mock.patch.object(owner, attribute, _marked(getattr(owner, attribute), label)))
        yield


def _marked(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    def run(*args: Any, **settings: Any) -> Any:
        with record_function(label):
            return function(*args, **settings)

    return run


def _is_label(event: Any) -> bool:
    return bool(getattr(event, "is_user_annotation", False))


def _own(event: Any) -> float:
    # Named after CUDA before torch 2.5 or so, after devices of any kind since.
    return float(getattr(event, "self_device_time_total", 0.0) or getattr(event, "self_cuda_time_total", 0.0))


def _whole(event: Any) -> float:
    return float(getattr(event, "device_time_total", 0.0) or getattr(event, "cuda_time_total", 0.0))
