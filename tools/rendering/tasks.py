"""Tables of tasks and presets, from the code itself, and of the run on OpenBookQA."""

from typing import Any

from laplace_lora.evaluation import DataSet, Line, lines_of, markdown_table
from laplace_lora.presets import PRESETS, Preset
from laplace_lora.tasks import TASKS, Task
from rendering.common import load, origin, session, table


def tasks_table() -> str:
    """Every task: where it is, how many rows, and what is asked."""
    head = ["task", "hub", "revision", "K", "train", "validation", "test", "figures are of", "licence (card)"]
    return table(head, [_task(task) for task in TASKS.values()])


def _task(task: Task) -> list[str]:
    def size(split: str) -> str:
        if split not in task.sizes:
            return ""
        kept = f" ({task.kept[split]:,})" if split in task.kept else ""
        return f"{task.sizes[split]:,}{kept}{' †' if split in task.hidden else ''}"

    configurations = ", ".join(name for name in task.hub.configurations if name != "default")
    return [
        f"`{task.name}`",
        task.hub.repository + (f": {configurations}" if configurations else ""),
        f"`{task.hub.revision[:12]}`",
        str(task.choices),
        *(size(split) for split in ("train", "validation", "test")),
        task.evaluation,
        task.hub.licence,
    ]


def presets_table() -> str:
    """Every preset, setting by setting."""
    settings = {
        "base": lambda p: ", ".join(p.bases),
        "prompts": lambda p: p.prompts or "paper",
        "LoRA": lambda p: f"r {p.training.rank}, alpha {p.training.alpha}, dropout {p.training.dropout:g}",
        "on": lambda p: ", ".join(p.training.target_modules or ("PEFT's choice",)),
        "learning rate": lambda p: f"{p.training.learning_rate:g}, linear",
        "warm-up": lambda p: f"{p.training.warmup:.0%}",
        "weight decay": lambda p: f"{p.training.weight_decay:g}",
        "clipping": lambda p: f"{p.training.most_gradient:g}" if p.training.most_gradient else "none",
        "batch": lambda p: str(p.training.batch_size),
        "length": _length,
        "checkpoint every": lambda p: f"{p.training.save_every:,} steps" if p.training.save_every else "epoch",
        "tokens, at most": lambda p: str(p.max_length),
        "padding": lambda p: p.padding_side,
        "seeds": lambda p: ", ".join(map(str, p.seeds)),
        "8 bits": lambda p: f"`--quantization {p.quantization}`" if p.quantization else "",
    }
    rows = [[name, *(str(read(preset)) for preset in PRESETS.values())] for name, read in settings.items()]
    return table(["", *(f"`{name}`" for name in PRESETS)], rows)


def _length(preset: Preset) -> str:
    training = preset.training
    return f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"


def openbookqa() -> str:
    """OpenBookQA and what lies outside of it: every set, every method, both protocols."""
    document = load("openbookqa")
    parts = []
    for result in document["results"]:
        lines: list[Line] = lines_of(DataSet.of(result["data"]), result)
        for other in (result["ood"] or {}).values():
            lines += lines_of(DataSet.of(other["data"]), other["comparison"], detection=other["detection"])
        columns = ("set", "n", "method", "accuracy", "nll", "ece", "ece_floor", "brier", "auroc", "aurc", "detection")
        parts.append(f"**{_heading(result)}**\n\n{markdown_table(lines, (*columns, 'difference'))}")
    return "\n\n".join(parts) + f"\n\nMade by {origin(document)}"


def _heading(result: Any) -> str:
    chosen = f", temperature {result['temperature']:.2f}" if result["temperature"] else ""
    return f"{result['protocol'].capitalize()}: prior precision {result['prior_precision']:.3g}{chosen}"


def openbookqa_each() -> str:
    """The commands of both protocols, what they said, and how long they took."""
    results = load("openbookqa")["results"]
    return "\n\n".join(session(f"{r['protocol'].capitalize()}, seed {r['seed']}", r) for r in results)
