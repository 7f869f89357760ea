"""The base model of a training run: loaded with a new head where it needs one, quantised where that is wanted."""

import dataclasses
from functools import cached_property
from typing import Any

import torch
from transformers import AutoConfig

from laplace_lora.adapters import FACTORIES, ModelKind, empty_model, unfilled_keys
from laplace_lora.adapters.quantised import kept_modules, quantization_config
from laplace_lora.commands.readout_choice import Answered
from laplace_lora.errors import AdapterFileError, first_line
from laplace_lora.quiet import quiet_transformers
from laplace_lora.readouts import is_causal_type


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A base model that somebody names.

    Attributes:
        name: Folder or hub id.
        revision: Revision on the hub.
        quantization: How to quantise it as it is loaded; None for not at all.
    """

    name: str
    revision: str | None = None
    quantization: str | None = None

    @cached_property
    def causal(self) -> bool:
        """Whether it reads from left to right."""
        return is_causal_type(self.load(AutoConfig).model_type)

    def load(self, factory: Any, **options: Any) -> Any:
        """Load a part of it.

        Args:
            factory: One of transformers' Auto classes.
            **options: Of its ``from_pretrained``.

        Returns:
            What the factory makes.

        Raises:
            AdapterFileError: It cannot be loaded.
        """
        try:
            return factory.from_pretrained(self.name, revision=self.revision, trust_remote_code=False, **options)
        except Exception as error:  # transformers raises whatever it pleases
            raise AdapterFileError(
                f"the base model {self.name} cannot be loaded ({first_line(error)}); give --model a folder or a hub id "
                "of a transformers model."
            ) from error

    def with_head(self, kind: ModelKind, settled: Answered) -> tuple[Any, list[str]]:
        """Load the model with a new head.

        Args:
            kind: Kind of model.
            settled: Readout and classes.

        Returns:
            The model, and the other layers that the checkpoint has no weights for.

        Raises:
            AdapterFileError: It lacks layers that cannot be trained beside an adapter.
        """
        options: dict[str, Any] = {}
        outputs = 1 if settled.readout.name in ("scalar", "pairwise_reward") else settled.classes
        if kind == "classifier":
            options["num_labels"] = outputs
        if self.quantization not in (None, "none"):
            settings = self.load(AutoConfig)
            kept = kept_modules(empty_model(settings, kind, outputs), ())
            options["quantization_config"] = quantization_config(self.quantization, torch.float32, settings, kept)
        with quiet_transformers():
            base, found = self.load(
                FACTORIES[kind],
                dtype=torch.float32,  # AdamW's steps are lost in the rounding of anything shorter
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        if kind == "classifier" and outputs > 1:
            # The names of the base's own classes, if it has some, are not this task's.
            base.config.id2label = dict(enumerate(settled.names or (f"LABEL_{index}" for index in range(outputs))))
            base.config.label2id = {name: index for index, name in base.config.id2label.items()}
        layers = {key.rpartition(".")[0] for key in unfilled_keys(found)}
        # PEFT trains and saves a classifier's two by itself.
        own = ("classifier", "score") if kind == "classifier" else ()
        fresh = sorted(name for name in layers if name.partition(".")[0] not in own)
        wrong = [name for name in fresh if type(base.get_submodule(name)) is not torch.nn.Linear]
        if wrong:
            raise AdapterFileError(
                f"the base model {self.name} has no weights for {', '.join(wrong[:3])}, which cannot be trained beside "
                "an adapter; give --model a pretrained model."
            )
        if kind == "multiple_choice" and "classifier" not in fresh and hasattr(base, "classifier"):
            fresh.append("classifier")  # a head that was trained on another task
        return base, fresh
