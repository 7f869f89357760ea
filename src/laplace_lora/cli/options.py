"""Options that several verbs share, with the words of their help."""

from pathlib import Path
from typing import Annotated

import typer

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
DataFile = Annotated[
    Path,
    typer.Option(
        help="JSONL or CSV: text | premise, hypothesis | question, choices | passage, question; label. Preferences: "
        "chosen, rejected, perhaps prompt. Texts: prompt, completion."
    ),
]
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


def split_names(labels: str | None) -> tuple[str, ...] | None:
    """Split a list of names at its commas.

    Args:
        labels: ``a,b,c``, or None.

    Returns:
        The names without blanks around them, or None.
    """
    return None if labels is None else tuple(name.strip() for name in labels.split(","))
