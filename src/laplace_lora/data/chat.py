"""Prompts as a chat model is asked: the tokenizer's own template around one message of the user."""

from typing import Any

from laplace_lora.errors import DataFileError, first_line

# Some templates print today's date, and an input must be tomorrow what it is today. A date of their own is what the
# templates of Llama 3 fall back to; a macro takes the place of the function that asks the clock.
_DATE = "26 Jul 2024"
_NO_CLOCK = "{%- macro strftime_now(format) -%}" + _DATE + "{%- endmacro -%}"


def require_chat_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Raises:
        DataFileError: It has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataFileError("the tokenizer has no chat template; leave out --chat, or give --template.")


def chat_text(tokenizer: Any, text: str) -> str:
    """Put a prompt into the tokenizer's chat template, up to where the model's answer begins.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        text: What the user says.

    Returns:
        The text, special tokens written out: the tokenizer must add none.

    Raises:
        DataFileError: The template refuses it.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_NO_CLOCK + tokenizer.get_chat_template(),
                date_string=_DATE,
            )
        )
    except Exception as error:  # of Jinja, in a template that is not ours
        raise DataFileError(
            f"the tokenizer's chat template fails ({first_line(error)}); leave out --chat, or give --template."
        ) from error
