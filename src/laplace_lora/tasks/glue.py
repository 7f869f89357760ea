"""GLUE and SuperGLUE: RTE, MRPC, WiC, CoLA and SST-2 (BoolQ stands with the commonsense tasks).

Classifiers read what the paper's RoBERTa read. The paper asks no language model these; the questions are ours.
"""

from laplace_lora.data import RowFormat
from laplace_lora.tasks import convert, prompts
from laplace_lora.tasks.base import Hub, Task

_ALL = {"train": "train", "validation": "validation", "test": "test"}
_PAIR = RowFormat("{{ premise }}", "{{ hypothesis }}")
_SENTENCES = {"premise": "sentence1", "hypothesis": "sentence2"}


def _task(
    name: str,
    title: str,
    sizes: tuple[int, int, int],
    *,
    question: str,
    names: tuple[str, ...],
    options: tuple[str, ...],
    columns: dict[str, str],
    class_form: RowFormat = _PAIR,
    hub: tuple[str, str] = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"),
) -> Task:
    return Task(
        name=name,
        title=title,
        hub=Hub(hub[0], (name,), hub[1], _ALL, "other (see the card: every set has its own)"),
        sizes=dict(zip(("train", "validation", "test"), sizes, strict=True)),
        convert=convert.columns(columns),
        fields=tuple(columns),
        prompts=prompts.choice_prompts(question),
        question=question,
        hidden=frozenset({"test"}),
        class_form=class_form,
        names=names,
        options=options,
    )


TASKS = (
    _task(
        "rte",
        "RTE",
        (2490, 277, 3000),
        question='Does "{{ premise }}" entail "{{ hypothesis }}"?',
        names=("entailment", "not entailment"),
        options=("yes", "no"),
        columns=_SENTENCES,
    ),
    _task(
        "mrpc",
        "MRPC",
        (3668, 408, 1725),
        question='Do "{{ premise }}" and "{{ hypothesis }}" say the same?',
        names=("not equivalent", "equivalent"),
        options=("no", "yes"),
        columns=_SENTENCES,
    ),
    _task(
        "wic",
        "WiC",
        (5428, 638, 1400),
        question='Does "{{ word }}" mean the same in "{{ premise }}" and in "{{ hypothesis }}"?',
        names=("different", "same"),
        options=("no", "yes"),
        columns={"word": "word"} | _SENTENCES,
        hub=("aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646"),
    ),
    _task(
        "cola",
        "CoLA",
        (8551, 1043, 1063),
        question='Is "{{ text }}" good English?',
        names=("unacceptable", "acceptable"),
        options=("no", "yes"),
        columns={"text": "sentence"},
        class_form=RowFormat("{{ text }}"),
    ),
    _task(
        "sst2",
        "SST-2",
        (67349, 872, 1821),
        question='Is "{{ text }}" praise or blame?',
        names=("negative", "positive"),
        options=("blame", "praise"),
        columns={"text": "sentence"},
        class_form=RowFormat("{{ text }}"),
    ),
)
