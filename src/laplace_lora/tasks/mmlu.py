"""Groups of MMLU's subjects: what is out of distribution for an adapter tuned on OpenBookQA."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from laplace_lora.tasks import convert, prompts
from laplace_lora.tasks.base import Hub, Task

#: Rows of every subject's test split on the hub.
SUBJECTS = {
    "cs": {
        "college_computer_science": 100,
        "high_school_computer_science": 100,
        "computer_security": 100,
        "machine_learning": 112,
    },
    "eng": {"electrical_engineering": 145},
    "law": {"international_law": 121, "jurisprudence": 108, "professional_law": 1534},
    "health": {
        "anatomy": 135,
        "clinical_knowledge": 265,
        "college_medicine": 173,
        "human_aging": 223,
        "nutrition": 306,
        "professional_medicine": 272,
        "virology": 166,
    },
    "chem": {"college_chemistry": 100},
    "phy": {"college_physics": 102},
}
_TITLES = {
    "cs": "computer science",
    "eng": "engineering",
    "law": "law",
    "health": "health",
    "chem": "chemistry",
    "phy": "physics",
}


def _of_subjects(subjects: Collection[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Keep a group's rows of a copy that holds all subjects."""
    return lambda row: "subject" not in row or str(row["subject"]).replace(" ", "_") in subjects


TASKS = tuple(
    Task(
        name=f"mmlu_{group}",
        title=f"MMLU, {_TITLES[group]}",
        # The hub's `dev` split has the five examples of every subject that few-shot prompts show; no figure is of its
        # `validation` split.
        hub=Hub(
            "cais/mmlu",
            tuple(subjects),
            "c30699e8356da336a370243923dbaf21066bb9fe",
            {"train": "dev", "test": "test"},
            "MIT",
        ),
        sizes={"train": 5 * len(subjects), "test": sum(subjects.values())},
        convert=convert.mmlu,
        fields=("question", "choices"),
        prompts=prompts.choice_prompts(),
        evaluation="test",
        belongs=_of_subjects(subjects),
        choices=4,
        aliases=(f"mmlu_{_TITLES[group].replace(' ', '_')}",),
    )
    for group, subjects in SUBJECTS.items()
)
