"""Published set-ups of training by name, and one for a machine without a GPU."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.training import TrainingSettings


@dataclasses.dataclass(frozen=True)
class Preset:
    """One set-up.

    Attributes:
        name: What the command line calls it.
        about: Whose it is, in one line.
        training: Settings of adapter and optimizer; its seed is the first of ``seeds``.
        seeds: Seeds that figures are averaged over.
        bases: Base models that it was published for, or that it suits.
        max_length: Most tokens per input; None for the model's limit.
        padding_side: ``left`` or ``right``; a prediction is the same either way.
        prompts: Whose prompts a language model is asked; the paper's if None.
        quantization: How the base may be quantised to follow the publication; it is loaded as it is unless asked.
        notes: What a reader should know.
    """

    name: str
    about: str
    training: TrainingSettings
    seeds: tuple[int, ...]
    bases: tuple[str, ...]
    max_length: int | None
    padding_side: str = "right"
    prompts: str | None = None
    quantization: str | None = None
    notes: tuple[str, ...] = ()


_PAPER = TrainingSettings(
    rank=8,
    alpha=16,
    dropout=0.1,
    target_modules=("q_proj", "v_proj", "lm_head"),
    steps=10_000,
    save_every=1_000,
    learning_rate=5e-5,
    warmup=0.0,
    weight_decay=0.0,
    most_gradient=0.0,  # the authors' script takes a norm to clip to, and never clips
    batch_size=4,
    seed=21,
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="paper",
            about="Laplace-LoRA on Llama-2-7B: Yang et al., ICLR 2024",
            training=_PAPER,
            seeds=(21, 42, 87),
            bases=("meta-llama/Llama-2-7b-hf",),
            max_length=300,
            padding_side="left",
            quantization="int8",
            notes=("The authors evaluate the hub's validation split, and quantise the base to 8 bits.",),
        ),
        Preset(
            name="paper-glue",
            about="Laplace-LoRA on RoBERTa, GLUE and SuperGLUE: Yang et al., ICLR 2024",
            training=dataclasses.replace(_PAPER, target_modules=("query", "value"), batch_size=32),
            seeds=(21, 42, 87),
            bases=("FacebookAI/roberta-base", "FacebookAI/roberta-large"),
            max_length=256,
            notes=("Read from the authors' script; they publish no other settings for RoBERTa-large.",),
        ),
        Preset(
            name="successors",
            about="the protocol of BLoB (Wang et al., NeurIPS 2024) and TFB; not comparable with the paper's figures",
            training=dataclasses.replace(
                _PAPER,
                dropout=0.0,
                steps=5_000,
                learning_rate=1e-4,
                warmup=0.06,
                weight_decay=1e-5,
                epsilon=1e-6,
                batch_size=8,
                seed=1,
            ),
            seeds=(1, 2, 3),
            bases=("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B"),
            max_length=300,
            padding_side="left",
            prompts="successors",
            quantization="int8",
            notes=(
                "Weight decay 1e-5 is that of their MAP; their ARC has five labels: tasks arc_challenge_5, arc_easy_5.",
            ),
        ),
        Preset(
            name="small",
            about="for two CPU cores and an encoder or language model of some 20M weights; ours",
            training=TrainingSettings(epochs=3, learning_rate=1e-3, save_every=None, batch_size=16, seed=0),
            seeds=(0, 1, 2),
            bases=("sentence-transformers/all-MiniLM-L6-v2",),
            max_length=128,
        ),
    )
}


def preset_or_none(name: str | None) -> Preset | None:
    """Return a preset by its name.

    Args:
        name: One of ``PRESETS``, or None.

    Returns:
        The preset; None for None.

    Raises:
        LaplaceLoRAError: There is none of that name.
    """
    if name is None:
        return None
    if name not in PRESETS:
        raise LaplaceLoRAError(f"there is no preset {name!r}; choose {', '.join(PRESETS)}.")
    return PRESETS[name]


def training_settings(preset: Preset | None, given: Mapping[str, Any]) -> TrainingSettings:
    """Put what somebody says in the place of what a preset says.

    Args:
        preset: The preset; None for the defaults.
        given: Fields of :class:`TrainingSettings`; None for what was not said.

    Returns:
        The settings.
    """
    said = {name: value for name, value in given.items() if value is not None}
    start = TrainingSettings() if preset is None else preset.training
    if "epochs" in said and "steps" not in said:
        said["steps"] = None
    return dataclasses.replace(start, **said)
