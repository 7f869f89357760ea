"""What is saved of a fitted estimator beside its tensors, and how it is compared with a model at hand."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laplace_lora.adapters import Fingerprint
from laplace_lora.config import LaplaceConfig, TunedBy
from laplace_lora.errors import PosteriorFileError
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.persistence.checks import (
    check_description,
    check_groups,
    checked_config,
    is_list_of,
    is_whole,
    is_word,
)


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """How inputs were made from text, saved with the posterior so that later inputs are made alike.

    Attributes:
        label_names: Names of the K classes in the order of the logits, or None.
        template: Jinja template of the inputs over a row's fields, or None if not known.
        max_length: Most tokens per input, or None.
        padding_side: ``left`` or ``right``; seen in ``fit`` if not given, None if nothing was padded.
        pair_template: As ``template``, of the second text of a pair; None without one.
        chat: Whether prompts stand in the tokenizer's chat template.
    """

    label_names: tuple[str, ...] | None = None
    template: str | None = None
    max_length: int | None = None
    padding_side: str | None = None
    pair_template: str | None = None
    chat: bool = False


def input_format_from(document: Mapping[str, Any]) -> InputFormat:
    """Rebuild an input format from its JSON.

    Args:
        document: One entry per field of :class:`InputFormat`.

    Returns:
        The format.

    Raises:
        PosteriorFileError: An entry is missing, unknown or malformed.
    """
    kinds: dict[str, Callable[[Any], bool]] = {
        "label_names": lambda value: is_list_of(is_word, value) and "" not in value and len(set(value)) == len(value),
        "template": is_word,
        "max_length": lambda value: is_whole(value, 1),
        "padding_side": lambda value: value in ("left", "right"),
        "pair_template": is_word,
        "chat": lambda value: isinstance(value, bool),
    }
    if not isinstance(document, Mapping):
        raise PosteriorFileError("the saved input format is no JSON object; save it again with this version.")
    document = {"chat": False, **document}  # earlier versions had no chat templates
    wrong = sorted(str(name)[:40] for name in set(document) ^ set(kinds))
    wrong += [name for name, check in kinds.items() if document.get(name) is not None and not check(document[name])]
    if wrong:
        raise PosteriorFileError(
            f"the saved input format is malformed ({', '.join(wrong[:5])}); save it again with this version."
        )
    names = document["label_names"]
    return InputFormat(**{**document, "label_names": None if names is None else tuple(names)})


@dataclasses.dataclass(frozen=True)
class SavedState:
    """The description in posterior_config.json.

    Attributes:
        library_version: Version of laplace-lora that wrote it.
        config: Settings of the posterior.
        readout: Name of the readout.
        input_format: How inputs were made.
        fingerprint: Of the base model and the adapter.
        matrices: Shapes of the weight matrices.
        held_at_map: Trained layers outside the posterior.
        prior_precision: One per group, in order.
        tuned_by: ``auto``, ``evidence``, ``validation``, ``cross_fit`` or None.
        examples: Number of training examples.
        classes: Number of logits.
        log_likelihood: log p(D | theta*) in nats, or None.
        accuracy: Training accuracy of the adapter, or None.
        readout_settings: The readout's own settings.
        noise_variance: Noise variance in use, where the likelihood has one that was tuned; else None.
        targets: Number of labelled training tokens, where the likelihood is that of tokens.
        effective_parameters: Where factors are sketched, the effective number of parameters ``with_tail`` and
            ``without_tail``, at the prior in use.
        temperature: Divides the mean logits of classes.
        squared_distances: (G,) squared distances |theta - theta_0|^2 from the prior's mean theta_0; None where that is
            zero.
        keeps_answers: Whether the classes' order in predictions is that of their mean logits.
    """

    library_version: str
    config: LaplaceConfig
    readout: str
    input_format: InputFormat
    fingerprint: Fingerprint
    matrices: tuple[MatrixShape, ...]
    held_at_map: tuple[str, ...]
    prior_precision: tuple[float, ...]
    tuned_by: TunedBy | None
    examples: int
    classes: int
    log_likelihood: float | None
    accuracy: float | None
    readout_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noise_variance: float | None = None
    targets: int | None = None
    effective_parameters: Mapping[str, float] | None = None
    temperature: float = 1.0
    squared_distances: tuple[float, ...] | None = None
    keeps_answers: bool = False

    def to_description(self) -> dict[str, Any]:
        """Return plain JSON values.

        Returns:
            One entry per field.
        """
        # Where rows lay on this machine is nobody's business elsewhere.
        return dataclasses.asdict(self) | {"config": self.config.to_dict() | {"rows_folder": None}}

    @classmethod
    def from_description(cls, document: Mapping[str, Any]) -> "SavedState":
        """Rebuild from :meth:`to_description`.

        Args:
            document: What posterior_config.json holds.

        Returns:
            The state.

        Raises:
            PosteriorFileError: A field is missing or malformed, or two do not go together.
        """
        check_description(document)
        try:
            # Files of earlier versions lack the last seven.
            values = {field.name: document[field.name] for field in dataclasses.fields(cls) if field.name in document}
            values |= {
                "config": checked_config(document["config"]),
                "input_format": input_format_from(document["input_format"]),
                "fingerprint": Fingerprint(**document["fingerprint"]),
                "matrices": tuple(MatrixShape(**shape) for shape in document["matrices"]),
                "held_at_map": tuple(document["held_at_map"]),
                "prior_precision": tuple(map(float, document["prior_precision"])),
            }
        except (KeyError, TypeError) as error:
            raise PosteriorFileError(
                f"posterior_config.json lacks or malforms an entry ({error}); fit and save the posterior again."
            ) from error
        state = cls(**values)
        if state.squared_distances is not None:
            distances = tuple(map(float, state.squared_distances))
            state = dataclasses.replace(state, squared_distances=distances)
            check_groups(state.config, state.matrices, distances, "squared_distances")
        check_groups(state.config, state.matrices, state.prior_precision, "prior_precision")
        names = state.input_format.label_names
        if names is not None and len(names) != state.classes:
            raise PosteriorFileError(
                f"posterior_config.json has {len(names)} label names for {state.classes} classes; fit and save the "
                "posterior again."
            )
        return state

    def groups(self) -> Groups:
        """Return the prior groups, in the order of ``prior_precision``.

        Returns:
            The groups.
        """
        return Groups.of(self.matrices, self.config.prior_groups)

    def check_model(self, fingerprint: Fingerprint, matrices: Sequence[MatrixShape]) -> None:
        """Refuse a model that the posterior was not fitted to.

        Args:
            fingerprint: Of the model at hand.
            matrices: Its weight matrices.

        Raises:
            PosteriorFileError: Names, shapes or weights differ; says which.
        """
        fitted, here = {m.name: m for m in self.matrices}, {m.name: m for m in matrices}
        differences = [f"{name} is missing here" for name in fitted if name not in here]
        differences += [f"{name} is not in the posterior" for name in here if name not in fitted]
        differences += [
            f"{name} has shape {(here[name].out_features, here[name].in_features)}, fitted was "
            f"{(shape.out_features, shape.in_features)}"
            for name, shape in fitted.items()
            if name in here and here[name] != shape
        ]
        differences += self.fingerprint.differences(fingerprint)
        if differences:
            more = f" and {len(differences) - 4} more differences" if len(differences) > 4 else ""
            dtype = self.fingerprint.base_dtype.removeprefix("torch.")
            again = f" in {dtype} (--dtype {dtype})" if self.fingerprint.base_dtype != fingerprint.base_dtype else ""
            raise PosteriorFileError(
                f"the posterior was fitted to another model: {'; '.join(differences[:4])}{more}. Load the adapter and "
                f"base it was fitted to (base: {self.fingerprint.base_name or self.fingerprint.base_class}){again}, "
                "quantised alike if it was (--quantization), or fit again."
            )
