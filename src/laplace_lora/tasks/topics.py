"""What a question asks for (TREC), and what a piece of news is about (AG News). The questions to a model are ours."""

from laplace_lora.data import RowFormat
from laplace_lora.tasks import convert, prompts
from laplace_lora.tasks.base import Hub, Task

_NO_VALIDATION = {"train": "train", "test": "test"}
_TEXT = RowFormat("{{ text }}")
_TREC = 'What does the question "{{ text }}" ask for?'
_NEWS = 'What is this piece of news about? "{{ text }}"'

TASKS = (
    Task(
        name="trec",
        title="TREC, six classes",
        # The commit behind the hub's own Parquet conversion: the main branch runs a loading script.
        hub=Hub("CogComp/trec", ("default",), "65752bf53af25bc935a0dce92fb5b6c930728450", _NO_VALIDATION, "unknown"),
        sizes={"train": 5452, "test": 500},
        convert=convert.columns({"text": "text"}, "coarse_label"),
        fields=("text",),
        prompts=prompts.choice_prompts(_TREC),
        question=_TREC,
        evaluation="test",
        shares_repository=False,
        class_form=_TEXT,
        names=("abbreviation", "entity", "description", "human", "location", "number"),
        options=("an abbreviation", "a thing", "a description", "a person or group", "a place", "a number"),
        choices=6,
    ),
    Task(
        name="ag_news",
        title="AG News",
        hub=Hub(
            "fancyzhx/ag_news", ("default",), "eb185aade064a813bc0b7f42de02595523103ca4", _NO_VALIDATION, "unknown"
        ),
        sizes={"train": 120000, "test": 7600},
        convert=convert.columns({"text": "text"}),
        fields=("text",),
        prompts=prompts.choice_prompts(_NEWS),
        question=_NEWS,
        evaluation="test",
        shares_repository=False,
        class_form=_TEXT,
        names=("World", "Sports", "Business", "Sci/Tech"),
        options=("the world", "sports", "business", "science and technology"),
        choices=4,
        aliases=("agnews",),
    ),
)
