"""What an evaluation computed, as a file that says of every tensor what it holds.

``outputs.safetensors`` names tensors by kind and method: ``logits/map``, ``probabilities/laplace``,
``mutual_information/laplace``, ``labels``; those of another data set stand under ``ood/NAME/``. The metadata say the
kind of every tensor once more, and reading refuses a file where name, metadata and values do not agree: the file whose
"logits" were probabilities could not have been read.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import FloatArray, IntArray, check_labels
from laplace_lora.evaluation.outputs import Logits, Probabilities, WrongKindError
from laplace_lora.evaluation.whole import write_whole

#: Name of the file beside metrics.json.
OUTPUTS_FILE = "outputs.safetensors"
_FORMAT, _VERSION = "laplace-lora outputs", "1"
# What tensors are called, and what the metadata say that they hold.
_KINDS = {"logits": "logits", "probabilities": "probabilities", "mutual_information": "nats", "labels": "labels"}
_OTHER = "ood/"
# Soft-maxes of float32 logits differ by a few 1e-7 from one place to another.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What methods gave for one data set. Options that an example lacks have logits of -inf and probability 0.

    Attributes:
        probabilities: (N, K) of each method, by name.
        logits: (N, K) of the methods that have some; ``probabilities`` of the same name are their softmax.
        mutual_information: (N,) in nats, of the methods that have it.
        labels: (N,) class numbers; None where there are none.
    """

    probabilities: Mapping[str, Probabilities]
    logits: Mapping[str, Logits] = dataclasses.field(default_factory=dict)
    mutual_information: Mapping[str, FloatArray] = dataclasses.field(default_factory=dict)
    labels: IntArray | None = None

    def __post_init__(self) -> None:
        """Refuse what is of the wrong kind, or of different examples.

        Raises:
            WrongKindError: A value is of the wrong type, or probabilities are not the softmax of their logits.
            LaplaceLoRAError: There is nothing, or shapes differ.
        """
        _require(Probabilities, self.probabilities)
        _require(Logits, self.logits)
        shapes = {p.values.shape for p in self.probabilities.values()} | {f.values.shape for f in self.logits.values()}
        if len(shapes) != 1:
            raise LaplaceLoRAError(
                f"outputs have the shapes {sorted(shapes)}; give those of the same examples and classes."
            )
        (shape,) = shapes
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels(self.labels, *shape))
        for name, nats in self.mutual_information.items():
            if isinstance(nats, Logits | Probabilities) or np.shape(nats) != shape[:1] or not np.isfinite(nats).all():
                raise LaplaceLoRAError(f"the mutual information of {name} is not one finite number of nats per row.")
        for name in set(self.logits) & set(self.probabilities):
            gap = np.abs(self.logits[name].softmax().values - self.probabilities[name].values).max()
            if gap > _ROUNDING:
                raise WrongKindError(
                    f"probabilities/{name} are not the softmax of logits/{name} (they differ by {gap:.2g}): one of "
                    "them is not what it is called; write them again from the model."
                )


class SavedOutputs(NamedTuple):
    """What a file holds.

    Attributes:
        data: Of the data that were evaluated.
        ood: Of every other data set, by its name.
    """

    data: Outputs
    ood: dict[str, Outputs]


def save_outputs(path: str | os.PathLike[str], data: Outputs, ood: Mapping[str, Outputs] | None = None) -> None:
    """Write outputs, whole or not at all.

    Args:
        path: Where to, a ``.safetensors`` file.
        data: Of the data that were evaluated.
        ood: Of other data sets, by name.

    Raises:
        LaplaceLoRAError: A method's name holds a slash, which separates names in the file.
    """
    tensors: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for prefix, outputs in (("", data), *((f"{_OTHER}{name}/", value) for name, value in (ood or {}).items())):
        for noun, method, values in _parts(outputs):
            if "/" in method:
                raise LaplaceLoRAError(f"the method {method!r} has a slash in its name; give it another.")
            name = prefix + (f"{noun}/{method}" if method else noun)
            tensors[name], kinds[name] = np.ascontiguousarray(values), _KINDS[noun]
    metadata = {"format": _FORMAT, "format_version": _VERSION, "kinds": json.dumps(kinds, sort_keys=True)}
    write_whole(path, save(tensors, metadata=metadata))


def load_outputs(path: str | os.PathLike[str]) -> SavedOutputs:
    """Read outputs, each as the type that the metadata say, and check by value what can be checked.

    Args:
        path: What :func:`save_outputs` wrote.

    Returns:
        Typed outputs.

    Raises:
        LaplaceLoRAError: The file cannot be read, does not say of every tensor what it holds, or says what its values
            contradict.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise LaplaceLoRAError(f"{path} cannot be read ({error}); evaluate again.") from error
    kinds = _kinds(path, metadata)
    sets: dict[str, dict[str, Any]] = {}
    try:
        for name, values in tensors.items():
            prefix, noun, method = _split(name, kinds.get(name))
            found = sets.setdefault(prefix, {key: {} for key in ("logits", "probabilities", "mutual_information")})
            if noun == "labels":
                found["labels"] = values
            else:
                found[noun][method] = _typed(noun, values)
        if "" not in sets:
            raise LaplaceLoRAError("it holds no outputs; evaluate again.")
        outputs = {prefix: Outputs(**found) for prefix, found in sets.items()}
    except LaplaceLoRAError as error:
        raise type(error)(f"{path}: {error}") from error
    ood = {prefix.removeprefix(_OTHER)[:-1]: value for prefix, value in outputs.items() if prefix}
    return SavedOutputs(outputs[""], ood)


def _require(wanted: type, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if not isinstance(value, wanted):
            raise WrongKindError(
                f"{name} is of type {type(value).__name__} where {wanted.__name__} are wanted; say what it holds."
            )


def _parts(outputs: Outputs) -> Iterator[tuple[str, str, Any]]:
    """List what is written: noun, method, values."""
    for method, logits in outputs.logits.items():
        yield "logits", method, logits.values
    for method, probabilities in outputs.probabilities.items():
        yield "probabilities", method, probabilities.values
    for method, nats in outputs.mutual_information.items():
        yield "mutual_information", method, np.asarray(nats, dtype=np.float64)
    if outputs.labels is not None:
        yield "labels", "", outputs.labels


def _kinds(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, str]:
    if metadata.get("format") != _FORMAT or metadata.get("format_version") != _VERSION:
        raise LaplaceLoRAError(
            f"{path} is not of the format {_FORMAT!r}, version {_VERSION}, which says what tensors hold; evaluate "
            "again."
        )
    try:
        kinds = json.loads(metadata.get("kinds", ""))
    except ValueError:
        kinds = None
    if not isinstance(kinds, dict):
        raise LaplaceLoRAError(f"{path} does not say what its tensors hold; evaluate again.")
    return kinds


def _split(name: str, kind: str | None) -> tuple[str, str, str]:
    """Take a tensor's name apart, and hold it against its kind: prefix of the data set, noun, method."""
    if kind is None:
        raise LaplaceLoRAError(f"the metadata do not say what the tensor {name!r} holds; evaluate again.")
    rest, _, last = name.rpartition("/")
    if last == "labels" and kind == "labels":
        prefix, noun, method = (f"{rest}/" if rest else ""), "labels", ""
    else:
        head, _, noun = rest.rpartition("/")
        prefix, method = (f"{head}/" if head else ""), last
    if _KINDS.get(noun) != kind or not (prefix == "" or prefix.startswith(_OTHER)):
        raise WrongKindError(f"the tensor {name!r} is said to hold {kind}, which is not its name; evaluate again.")
    return prefix, noun, method


def _typed(noun: str, values: Any) -> Any:
    if noun == "logits":
        return Logits(values)
    return Probabilities(values) if noun == "probabilities" else np.asarray(values, dtype=np.float64)
