"""Options that several verbs share, with the words of their help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laplace_lora.errors import LaplaceLoRAError

Adapter = Annotated[str, typer.Option(help="Folder or hub id of the LoRA adapter.", metavar="DIR")]
Base = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the base model.  [default: as in adapter_config.json]", metavar="DIR"),
]
Revision = Annotated[
    str | None, typer.Option(help="Revision of the base on the hub.  [default: as in adapter_config.json]")
]
Dtype = Annotated[str, typer.Option(help="dtype of the base: auto (the checkpoint's), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto takes a GPU if there is one.")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the classes in the order of the logits: a,b,c.  [default: as saved with the adapter]",
        metavar="A,B,C",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Jinja template of an input over a row's fields, as '{{ question }}'.  [default: by the fields]",
        metavar="JINJA",
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(min=2, help="Most tokens per input.  [default: the model's limit]", metavar="TOKENS")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.", metavar="ROWS")]
Posterior = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the posterior.  [default: the adapter's folder]", metavar="DIR"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no messages but warnings.")]
JsonLog = Annotated[bool, typer.Option("--json-log", help="Messages as JSON, one object per line; no progress bars.")]
Data = Annotated[
    str,
    typer.Option(
        help="JSONL or CSV: text | premise, hypothesis | question, choices | passage, question; label. Preferences: "
        "chosen, rejected, perhaps prompt. Texts: prompt, completion. Or a known task (see laplace-lora tasks), "
        "perhaps with a split: openbookqa:validation, openbookqa:train[:80%].",
        metavar="FILE|TASK",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with copies of tasks: TASK/train.jsonl and so on, or the hub's own repositories.  [default: the "
        "hub, through datasets]",
        metavar="DIR",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Whose prompts of a task a language model is asked: paper (its text), paper-code (its authors' code) or "
        "successors.  [default: as saved with the adapter, as the preset, or paper]",
        metavar="WHOSE",
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put every prompt into the tokenizer's chat template.")]
ReadoutName = Annotated[
    str | None,
    typer.Option(
        help="How answers are read: class (a classifier's logits), answers (a language model's tokens after a prompt), "
        "options (each choice scored by itself), next-token (every token of a completion), scalar (a number), pairwise "
        "(preferences).  [default: as trained, or what model and data leave no doubt of]",
        metavar="NAME",
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(
        help="Words that answer, one token each, in the order of the labels: A,B.  [default: as the prompt asks]",
        metavar="A,B,C",
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        help="Divide the log-likelihood of an option's text by: none, tokens or characters.  [default: none]",
        metavar="HOW",
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="Quantise the base as it is loaded: nf4, nf4-double, int8, torchao-int8 or none.  [default: as trained]",
        metavar="HOW",
    ),
]


#: Stands for the split that a task's figures are measured on.
EVALUATION = "evaluation"

# Of trainings, by `train` and `bench`.
Rank = Annotated[int | None, typer.Option(min=1, help="LoRA rank r.  [default: 8]")]
Alpha = Annotated[
    int | None, typer.Option(min=1, help="LoRA scale: the adapter's output is times alpha / r.  [default: 16]")
]
Dropout = Annotated[
    float | None, typer.Option(min=0.0, max=0.9, help="Dropout before the adapter, a probability.  [default: 0]")
]
TargetModules = Annotated[
    str | None, typer.Option(help="Layers to adapt: query,value.  [default: PEFT's choice]", metavar="A,B,C")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data, at most.  [default: 10]")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps, at most, in place of --epochs.  [default: by the epochs]")
]
SaveEvery = Annotated[
    int | None,
    typer.Option(min=1, help="Steps from one checkpoint to the next.  [default: an epoch]", metavar="STEPS"),
]
LearningRate = Annotated[
    float | None, typer.Option(min=0.0, max=10.0, help="Peak rate of AdamW, with linear decay.  [default: 0.001]")
]
PaddingSide = Annotated[
    str | None, typer.Option(help="left or right, of a language model; predictions are the same.  [default: right]")
]
BaseRevision = Annotated[str | None, typer.Option(help="Revision of the base on the hub.")]


def source(text: str | None, default: str | None, data_dir: Path | None, prompts: str | None = None) -> Any:
    """Find out what somebody names as data.

    Args:
        text: A file or a task, or None.
        default: Split of a task that is named without one.
        data_dir: Holds copies of tasks.
        prompts: Whose prompts.

    Returns:
        The file or the task's rows; None for None.
    """
    from laplace_lora.commands.sources import open_source  # --help must not wait for torch

    return None if text is None else open_source(text, default, data_dir, prompts)


def split_positions(positions: str | None) -> tuple[int, ...] | None:
    """Split a list of whole numbers at its commas.

    Args:
        positions: ``0,1,-1``, or None.

    Returns:
        The numbers, or None.

    Raises:
        LaplaceLoRAError: A part is no whole number.
    """
    try:
        return None if positions is None else tuple(int(part) for part in positions.split(","))
    except ValueError as error:
        raise LaplaceLoRAError(f"{positions!r} is no list of whole numbers; write 0,1 or -2,-1.") from error


def split_names(labels: str | None) -> tuple[str, ...] | None:
    """Split a list of names at its commas.

    Args:
        labels: ``a,b,c``, or None.

    Returns:
        The names without blanks around them, or None.
    """
    return None if labels is None else tuple(name.strip() for name in labels.split(","))
