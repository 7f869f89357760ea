"""The paper's six commonsense tasks, and CommonsenseQA."""

import dataclasses

from laplace_lora.data import RowFormat
from laplace_lora.tasks import convert, prompts
from laplace_lora.tasks.base import Hub, Task

_ALL = {"train": "train", "validation": "validation", "test": "test"}
_HIDDEN_TEST = frozenset({"test"})
_QUESTION = ("question", "choices")


def _winogrande(size: str, train: int) -> Task:
    name = f"winogrande_{size}"
    return Task(
        name=name,
        title=f"WinoGrande, {size.upper()}",
        hub=Hub(
            "allenai/winogrande",
            (name,),
            "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
            _ALL,
            "none on the card (its authors: CC-BY)",
        ),
        sizes={"train": train, "validation": 1267, "test": 1767},
        convert=convert.winogrande,
        fields=_QUESTION,
        prompts=prompts.WINOGRANDE,
        hidden=_HIDDEN_TEST,
        choices=2,
        aliases=(f"wg_{size}",),
    )


def _arc(name: str, title: str, sizes: tuple[int, int, int], kept: tuple[int, int, int], alias: str) -> Task:
    splits = ("train", "validation", "test")
    return Task(
        name=name,
        title=title,
        hub=Hub(
            "allenai/ai2_arc",
            (title,),
            "210d026faf9955653af8916fad021475a3f00453",
            _ALL,
            "CC BY-SA 4.0",
        ),
        sizes=dict(zip(splits, sizes, strict=True)),
        convert=convert.lettered("question"),
        fields=_QUESTION,
        prompts=prompts.SCIENCE,
        choices=4,
        kept=dict(zip(splits, kept, strict=True)),
        aliases=(alias,),
    )


def _five(task: Task) -> Task:
    """Ask a task of four choices with five labels and every question, as the successors do."""
    return dataclasses.replace(
        task,
        name=f"{task.name}_5",
        title=f"{task.title}, five labels",
        choices=5,
        exactly=False,
        kept={},
        aliases=tuple(f"{alias}_5" for alias in task.aliases),
        kin=task.folders,
    )


_ARC_CHALLENGE = _arc("arc_challenge", "ARC-Challenge", (1119, 299, 1172), (1117, 295, 1165), "arc_c")
_ARC_EASY = _arc("arc_easy", "ARC-Easy", (2251, 570, 2376), (2241, 567, 2365), "arc_e")

TASKS = (
    _winogrande("s", 640),
    _winogrande("m", 2558),
    _ARC_CHALLENGE,
    _ARC_EASY,
    Task(
        name="openbookqa",
        title="OpenBookQA",
        hub=Hub("allenai/openbookqa", ("main",), "388097ea7776314e93a529163e0fea805b8a6454", _ALL, "unknown"),
        sizes={"train": 4957, "validation": 500, "test": 500},
        convert=convert.lettered("question_stem"),
        fields=_QUESTION,
        prompts=prompts.OPENBOOKQA,
        shares_repository=False,
        choices=4,
        aliases=("obqa",),
    ),
    Task(
        name="boolq",
        title="BoolQ",
        # SuperGLUE's copy, as the authors load it; google/boolq has the same rows without the test split.
        hub=Hub("aps/super_glue", ("boolq",), "3de24cf8022e94f4ee4b9d55a6f539891524d646", _ALL, "CC BY-SA 3.0"),
        sizes={"train": 9427, "validation": 3270, "test": 3245},
        convert=convert.boolq,
        fields=("passage", "question"),
        prompts=prompts.BOOLQ,
        question="{{ passage }}\n{{ question }}",
        hidden=_HIDDEN_TEST,
        class_form=RowFormat("{{ passage }}", "{{ question }}"),
        words=("False", "True"),
        names=("False", "True"),
        options=("no", "yes"),
        aliases=("boolq_passage",),
    ),
    _five(_ARC_CHALLENGE),
    _five(_ARC_EASY),
    Task(
        name="commonsense_qa",
        title="CommonsenseQA",
        hub=Hub("tau/commonsense_qa", ("default",), "94630fe30dad47192a8546eb75f094926d47e155", _ALL, "MIT"),
        sizes={"train": 9741, "validation": 1221, "test": 1140},
        convert=convert.lettered("question"),
        fields=_QUESTION,
        prompts=prompts.COMMONSENSE_QA,
        shares_repository=False,
        hidden=_HIDDEN_TEST,
        choices=5,
        aliases=("commonsenseqa", "csqa"),
    ),
)
