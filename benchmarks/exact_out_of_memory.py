"""The exact posterior with its rows on disk: seconds, memory and bytes of every step, at M rows of P weights.

MiniLM with LoRA on all linear layers, drawn at random and not trained (neither time nor memory ask for more), and
SST-2: two classes, so that M sentences are M rows. Memory is sampled all along: what the process calls its own
(RssAnon), and what is resident with the pages of mapped files (RSS), which the system drops when it needs them.

A second part, small and in memory, asks what rows in bfloat16 do to variances, by how far the data narrow them.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import minilm, write_results
from transformers import AutoTokenizer

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches
from laplace_lora.posterior import ExactPosterior
from laplace_lora.streaming import working_bytes

MOST_WORDS = 30


class Meter:
    """Seconds and peaks of steps, and bytes that came from the disk."""

    def __init__(self) -> None:
        """Start without steps."""
        self.steps: dict[str, dict[str, float]] = {}

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one step and note what it took."""
        peaks = {"RssAnon": 0, "VmRSS": 0}
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                for key, value in _status().items():
                    peaks[key] = max(peaks[key], value)

        watcher = threading.Thread(target=watch)
        before, read, start = _status()["RssAnon"], _read_from_disk(), time.perf_counter()
        watcher.start()
        try:
            result = work()
        finally:
            seconds = time.perf_counter() - start
            done.set()
            watcher.join()
        self.steps[name] = {
            "seconds": seconds,
            "anonymous_before_bytes": before,
            "anonymous_peak_bytes": max(peaks["RssAnon"], _status()["RssAnon"]),
            "resident_peak_bytes": max(peaks["VmRSS"], _status()["VmRSS"]),
            "from_disk_bytes": _read_from_disk() - read,
        }
        print(name, {key: f"{value:,.1f}" for key, value in self.steps[name].items()}, flush=True)
        return result


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}


def _read_from_disk() -> int:
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fit, tune, predict, save and load."""
    model, meter = minilm(2, options.rank, "all"), Meter()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="exact-out-of-memory-") as folder:
        saved = Path(folder) / "posterior"
        found = fit_and_predict(options, model, folder, saved, meter)
        found["saved_bytes"] = sum(path.stat().st_size for path in saved.iterdir())
        # What was fitted is gone by now, rows and Gram matrix.
        again = meter.step("load", lambda: LaplaceLoRA.from_pretrained(model, saved))
        assert isinstance(again.posterior, ExactPosterior)
        found["loaded_is_mapped"] = again.posterior.rows.on_disk
        assert corner(again.posterior) == found.pop("corner")
    return {**found, "steps": meter.steps}


def fit_and_predict(options: argparse.Namespace, model: Any, folder: str, saved: Path, meter: Meter) -> dict[str, Any]:
    """Take every step but loading."""
    train, test = data(options, "train", options.rows), data(options, "test", options.test)
    config = LaplaceConfig(
        structure="exact",
        rows_folder=folder,
        rows_dtype=options.rows_dtype,
        memory_limit_bytes=options.memory_limit_mib * 2**20,
        train_check_bytes=0,
        progress=False,
    )
    la = LaplaceLoRA(model, config)
    meter.step("fit", lambda: la.fit(train))
    posterior = la.posterior
    assert isinstance(posterior, ExactPosterior)
    meter.step("Gram matrix", posterior.grams)
    meter.step("eigenvectors", lambda: posterior.decompose(torch.ones(1, dtype=torch.float64)))
    meter.step("evidence", lambda: la.tune_prior("evidence"))
    before = posterior.rows.passes
    found = meter.step("test set", lambda: la.predict_dataset(test))
    streams = posterior.rows.passes - before
    single = meter.step("one batch", lambda: la.predict(test[0]))
    meter.step("two samples", lambda: la.sample(2))
    meter.step("save", lambda: la.save_pretrained(saved))
    rows, weights = len(posterior.rows), sum(shape.size for shape in posterior.shapes)
    return {
        "model": "minilm, all linear layers",
        "rank": options.rank,
        "rows": rows,
        "weights": weights,
        "rows_dtype": options.rows_dtype,
        "row_bytes": posterior.nbytes,
        "memory_limit_bytes": config.memory_limit_bytes,
        "working_bytes": working_bytes(rows, 1, max(shape.size for shape in posterior.shapes)),
        "shared_bytes": posterior.shared_bytes(config.memory_limit_bytes),
        "prior_precision": la.prior_precision,
        "narrowed_rows": posterior.largest_narrowing(torch.tensor([la.prior_precision], dtype=torch.float64)),
        "test_sentences": len(found.mean),
        "test_jacobian_bytes": 4 * weights * len(found.mean),
        "test_streams": streams,
        "batch_sentences": len(single.mean),
        "largest_difference": float((found.covariance[: len(single.mean)] / single.covariance - 1.0).abs().max()),
        "corner": corner(posterior),
    }


def corner(posterior: ExactPosterior) -> list[float]:
    """Return some numbers of the rows, which a file must give back."""
    return [float(rows[-1, -1]) for rows in posterior.rows.tensors]


def data(options: argparse.Namespace, part: str, count: int) -> list[dict[str, Any]]:
    """Return batches of short sentences."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    lines = (options.data_dir / f"sst2/{part}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    short = [row for row in rows if len(row["text"].split()) <= MOST_WORDS]
    assert len(short) >= count
    return list(batches(short[:count], tokenizer, 32))


def bfloat16_errors(options: argparse.Namespace) -> list[dict[str, float]]:
    """Compare variances from rows in bfloat16 and in float32, at priors over many decades."""
    train, test, model = data(options, "train", 192), data(options, "test", 96), minilm(2, 8, "q/v")
    fitted = {}
    for dtype in ("float32", "bfloat16"):
        config = LaplaceConfig(structure="exact", rows_dtype=dtype, progress=False, train_check_bytes=0)
        fitted[dtype] = LaplaceLoRA(model, config).fit(train)
    shapes = fitted["float32"].posterior.shapes
    nothing = ExactPosterior(shapes, [torch.zeros(1, shape.size) for shape in shapes])
    nothing.assign_groups(fitted["float32"].posterior.groups)
    rounded = fitted["bfloat16"].posterior
    assert isinstance(rounded, ExactPosterior)
    found = []
    for exponent in range(-6, 2):
        delta = torch.tensor([10.0**exponent], dtype=torch.float64)
        row: dict[str, float] = {
            "prior_precision": float(delta),
            "narrowed_rows": rounded.largest_narrowing(delta),
            "warned": rounded.storage_warning(delta) is not None,
        }
        for name, part in (("test", test), ("training", train)):
            posteriors = (nothing, fitted["float32"].posterior, rounded)
            prior, exact, coarse = (variances(fitted["float32"], each, delta, part) for each in posteriors)
            errors = ((coarse - exact) / exact).abs()
            row[f"{name}_narrowed"] = float((prior / exact).max())
            row[f"{name}_largest_error"] = float(errors.max())
            row[f"{name}_median_error"] = float(errors.median())
        found.append(row)
        print(row, flush=True)
    return found


def variances(la: LaplaceLoRA, posterior: Any, delta: torch.Tensor, batches: Any) -> torch.Tensor:
    """Return the variance of the first centred logit under a posterior over the same weights."""
    linearised = dataclasses.replace(la._state.linearised(la.model), posterior=posterior, precision=delta)
    found = linearised.covariances(batches, la._covered.reader, None)
    return torch.cat([covariance[0, :, 0, 0] for _, covariance, _ in found])


def main() -> None:
    """Measure both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ as JSONL")
    parser.add_argument("--folder", help="folder with room for twice the rows (default: the system's temporary one)")
    parser.add_argument("--rows", type=int, default=5000, help="sentences to fit to (default: 5000)")
    parser.add_argument("--rank", type=int, default=24, help="of LoRA; 24 gives a million weights (default: 24)")
    parser.add_argument("--test", type=int, default=256, help="test sentences (default: 256)")
    parser.add_argument("--rows-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--memory-limit-mib", type=int, default=2048, help="(default: 2048)")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    results: dict[str, Any] = {"out_of_memory": measure(options)}
    write_results("exact_out_of_memory", results, show=False)
    results["bfloat16"] = bfloat16_errors(options)
    write_results("exact_out_of_memory", results, show=False)


if __name__ == "__main__":
    main()
