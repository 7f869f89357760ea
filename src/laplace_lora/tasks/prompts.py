"""What a language model is asked: in the paper's words, its code's or the successors'; and how else rows are read.

A prompt is a Jinja template over a row's fields, so that any other can take its place (``--template``).
"""

from laplace_lora.data import RowFormat, layouts
from laplace_lora.data.layouts import LISTED, SELECT

#: Whose prompts: as the paper writes them (Yang et al., ICLR 2024); as the authors' released code has them
#: (adamxyang/laplace-lora, run_gpt.py); as the successors' code has them (BLoB, TFB: Wang-ML-Lab/bayesian-peft,
#: dataset/utils/dsets.py for the words, dataset/S2SDataset_Classification.py for where it adds the closing token).
PAPER, PAPER_CODE, SUCCESSORS = "paper", "paper-code", "successors"
PROMPTS = (PAPER, PAPER_CODE, SUCCESSORS)

_END = "{{ eos_token }}"
# The code closes every option of ARC and OpenBookQA with a full stop and begins it with a capital.
_LISTED_BY_CODE = (
    " Choices:{% for choice in choices %} {{ letters[loop.index0] }}. {{ choice[:1]|upper }}{{ choice[1:] }}"
    "{% if not choice.endswith('.') %}.{% endif %}{% endfor %} Answer:"
)
_RETURN = "Return the label of the correct answer for the question below.\n\nQuestion: "
_LINES = "\nChoices:{% for choice in choices %}\n{{ letters[loop.index0] }}) {{ choice }}{% endfor %}\nAnswer:"
# On ARC and OpenBookQA the successors' code prints text and letter in this order.
_SWAPPED_LINES = "{% for choice in choices %}\n{{ choice }}) {{ letters[loop.index0] }}{% endfor %}\nAnswer:"


def choice_prompts(question: str = "{{ question }}") -> dict[str, str]:
    """Return prompts that list choices by letters.

    Args:
        question: Jinja template of what is asked.

    Returns:
        One per entry of :data:`PROMPTS`.
    """
    return {
        PAPER: f"{SELECT}{question}{LISTED}",
        PAPER_CODE: f"{SELECT}{question}{LISTED}",
        SUCCESSORS: f"{_RETURN}{question}{_LINES}",
    }


SCIENCE = choice_prompts() | {
    PAPER_CODE: f"{SELECT}{{{{ question }}}}{_LISTED_BY_CODE}",
    SUCCESSORS: f"{_RETURN}{{{{ question }}}}\nChoices:{_SWAPPED_LINES}",
}
#: The successors' code spells the heading of OpenBookQA's choices this way.
OPENBOOKQA = SCIENCE | {SUCCESSORS: f"{_RETURN}{{{{ question }}}}\nChioces:{_SWAPPED_LINES}"}
WINOGRANDE = {
    PAPER: choice_prompts()[PAPER],
    # One full stop is missing in the code, and it is in every prompt.
    PAPER_CODE: f"{SELECT}{{{{ question }}}} Choices: A. {{{{ choices[0] }}}}. B {{{{ choices[1] }}}}. Answer:",
    SUCCESSORS: choice_prompts()[SUCCESSORS] + _END,
}
BOOLQ = {
    PAPER: layouts.BOOLQ,
    PAPER_CODE: layouts.BOOLQ,
    SUCCESSORS: (
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\nPassage: "
        f"{{{{ passage[:1024] }}}}\nQuestion: {{{{ question }}}}\nAnswer (true or false):{_END}"
    ),
}
COMMONSENSE_QA = choice_prompts() | {
    SUCCESSORS: "Answer the multiple choice question below by returning the answer label (A to E)\n\nQuestion: "
    "{{ question }}" + _LINES
}

#: A question with its choices, for a classifier of the letters.
LISTING = RowFormat("{{ question }}{% for choice in choices %}\n{{ letters[loop.index0] }}. {{ choice }}{% endfor %}")


def option_form(question: str) -> RowFormat:
    """Return what a language model scores an option by: the likelihood of its text after the question.

    Args:
        question: Jinja template of what is asked.

    Returns:
        Question and option.
    """
    return RowFormat(f"Question: {question}\nAnswer:", " {{ choice }}")


def encoder_option_form(question: str) -> RowFormat:
    """Return what a multiple-choice encoder scores an option by: both texts side by side.

    Args:
        question: Jinja template of what is asked.

    Returns:
        Question and option.
    """
    return RowFormat(question, "{{ choice }}")
