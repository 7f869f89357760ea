"""A saved adapter put onto its base model, or refused with what does not fit."""

import copy
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

import peft
import torch
from torch import nn
from transformers import AutoConfig

from laplace_lora.adapters.files import SavedAdapter
from laplace_lora.adapters.kinds import FACTORIES, PURPOSES, ModelKind, saved_kind
from laplace_lora.adapters.packed import is_finite
from laplace_lora.adapters.quantised import kept_modules, quantization_config
from laplace_lora.adapters.weights import adapter_state_dict
from laplace_lora.errors import AdapterFileError
from laplace_lora.quiet import quiet_transformers

_PREFIX = "base_model.model."
_MOST_LAYERS = 10_000
_SMALL = 10**7


def load_model(
    saved: SavedAdapter,
    base: str | None,
    revision: str | None,
    dtype: Any,
    device_map: Any,
    quantization: str | None = None,
) -> tuple[peft.PeftModel, str, str | None]:
    """Load the base model of an adapter with the adapter on it.

    Args:
        saved: The adapter's files.
        base: Folder or hub id of the base; from adapter_config.json if not given.
        revision: Revision of the base on the hub; from adapter_config.json if not given.
        dtype: As for ``from_pretrained``: ``"auto"`` is the checkpoint's.
        device_map: As for ``from_pretrained``.
        quantization: How to quantise the base; None for not at all.

    Returns:
        The model, in eval mode; the base's folder or id, and its revision.

    Raises:
        AdapterFileError: The base is unknown, cannot be loaded, or is not the adapter's.
    """
    name = _given_base(base) if base is not None else _stated_base(saved)
    if revision is None and base is None:  # the saved one is the saved base's
        revision = saved.config.get("revision")
    kind = saved_kind(saved)
    config = _base_config(name, revision, saved)
    options, kind = _head_options(config, saved, kind, name)
    if quantization is not None:
        kept = kept_modules(empty_model(config, kind, options.get("num_labels", config.num_labels)), saved.shapes)
        options["quantization_config"] = quantization_config(quantization, dtype, config, kept)
    with quiet_transformers():
        try:
            model, info = FACTORIES[kind].from_pretrained(
                name,
                revision=revision,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head of other classes is replaced by the adapter's
                **options,
            )
        except Exception as error:  # transformers and its readers raise whatever they please
            raise AdapterFileError(_base_message(name, saved, error, kind)) from error
        _refuse_new_weights(name, saved, info)
        _refuse_non_finite(name, model)
        _resize_embeddings(model, saved)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # missing keys are refused below
                adapted = peft.PeftModel.from_pretrained(model, str(saved.folder))
        except Exception as error:  # the same of peft
            raise AdapterFileError(
                f"the adapter in {saved.folder} does not fit the base {name} ({_reason(error)}); name the base that it "
                "was trained on with --base."
            ) from error
    _check_loaded(adapted, saved, name)
    _warn_of_rounding(adapted, saved)
    return adapted.eval(), name, revision


def saved_classes(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Read the number of classes off a saved head.

    The head's tensors are those whose shape changes with ``num_labels`` in an empty copy of the model.

    Args:
        config: The base's configuration.
        shapes: Shapes of the adapter's tensors.

    Returns:
        K, or None if the adapter holds no head.
    """
    return _head_size(_empty_shapes(config, "classifier", 2), _empty_shapes(config, "classifier", 3), shapes)


def _head_options(
    config: Any, saved: SavedAdapter, kind: ModelKind | None, name: str
) -> tuple[dict[str, Any], ModelKind]:
    """Return what the base has to be loaded with for the adapter's head, and what kind of model it is."""
    wanted = kind or "classifier"
    try:
        two = _empty_shapes(config, wanted, 2)
        three = _empty_shapes(config, wanted, 3) if wanted == "classifier" else two
    except Exception as error:  # transformers raises whatever it pleases
        raise AdapterFileError(_base_message(name, saved, error, wanted)) from error
    classes = _head_size(two, three, saved.shapes)
    _refuse_absurd_size(name, two)
    if kind is None and classes is None:
        raise AdapterFileError(
            f"the adapter in {saved.folder} names no task type and holds no classification head; train it with "
            "LoraConfig(task_type='SEQ_CLS'), or 'CAUSAL_LM' for a language model."
        )
    return ({} if classes is None or classes == config.num_labels else {"num_labels": classes}), wanted


def _head_size(
    two: Mapping[str, tuple[int, ...]], three: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    for name, shape in two.items():
        saved = shapes.get(_PREFIX + name)
        changed = [axis for axis, size in enumerate(shape) if size != three[name][axis]]
        if saved is not None and len(saved) == len(shape) and changed:
            return saved[changed[0]]
    return None


def _empty_shapes(config: Any, kind: ModelKind, classes: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in empty_model(config, kind, classes).state_dict().items()}


def empty_model(config: Any, kind: ModelKind, classes: int) -> nn.Module:
    """Make a model without memory for its weights.

    Args:
        config: Its configuration.
        kind: Kind of model.
        classes: Outputs of a classifier.

    Returns:
        The model, on the meta device.
    """
    config = copy.deepcopy(config)
    config.num_labels = classes
    with torch.device("meta"), quiet_transformers():
        return cast(nn.Module, FACTORIES[kind].from_config(config))


def _stated_base(saved: SavedAdapter) -> str:
    name = saved.config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise AdapterFileError(
            f"adapter_config.json in {saved.folder} names no base model; give it with --base (in Python: base=...)."
        )
    if _looks_local(name) and not os.path.isdir(os.path.expanduser(name)):
        raise AdapterFileError(
            f"the base model {name[:300]} that adapter_config.json in {saved.folder} names is not there any more; say "
            "where it is with --base (in Python: base=...)."
        )
    return os.path.expanduser(name) if _looks_local(name) else name


def _given_base(name: str) -> str:
    path = os.path.expanduser(name)
    if not os.path.isdir(path) and (not name or _looks_local(name) or os.path.exists(path)):
        raise AdapterFileError(f"the base model {name or 'of an empty name'} is no folder; mend --base.")
    return path


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _base_config(name: str, revision: str | None, saved: SavedAdapter) -> Any:
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > _MOST_LAYERS:
            raise ValueError(f"config.json says {layers} layers")
    except Exception as error:  # transformers raises whatever it pleases
        raise AdapterFileError(_base_message(name, saved, error)) from error
    return config


def _refuse_absurd_size(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a damaged config.json before memory is taken for what it describes."""
    if not os.path.isdir(name):
        return
    there = sum(os.path.getsize(entry.path) for entry in os.scandir(name) if entry.is_file())
    described = sum(math.prod(shape) for shape in shapes.values())
    # Half a byte per weight is the least that quantised checkpoints take; tied weights are described twice.
    if described > 8 * there + _SMALL:
        raise AdapterFileError(
            f"config.json of the base {name} describes {described:,} weights, and all its files hold {there:,} bytes; "
            "get a sound copy of it, or name another with --base."
        )


def _base_message(name: str, saved: SavedAdapter, error: Exception, kind: ModelKind = "classifier") -> str:
    return (
        f"the base model {name} of the adapter in {saved.folder} cannot be loaded for {PURPOSES[kind]} "
        f"({_reason(error)}); check it, or give another folder or hub id with --base."
    )


def unfilled_keys(info: Mapping[str, Any]) -> list[str]:
    """List the weights that a checkpoint left at their random start.

    Args:
        info: What ``from_pretrained(..., output_loading_info=True)`` returned beside the model.

    Returns:
        Names of those that it lacks, or holds in another shape.
    """
    mismatched = (entry[0] if isinstance(entry, tuple) else entry for entry in info.get("mismatched_keys", ()))
    return [*info.get("missing_keys", ()), *mismatched]


def _refuse_new_weights(name: str, saved: SavedAdapter, info: Mapping[str, Any]) -> None:
    """Refuse weights that neither the base nor the adapter holds: they would be random at every load."""
    absent = [key for key in unfilled_keys(info) if _PREFIX + key not in saved.shapes]
    if absent:
        shown = ", ".join(sorted(absent)[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
        raise AdapterFileError(
            f"neither the base {name} nor the adapter in {saved.folder} holds {shown}: they would be random; give the "
            "right base with --base, or train again with these modules in LoraConfig(modules_to_save=[...])."
        )


def _resize_embeddings(model: Any, saved: SavedAdapter) -> None:
    """Make room for tokens that were added before training (a padding token, say): PEFT saves all embeddings then."""
    embedding = model.get_input_embeddings()
    key = next((name for name, module in model.named_modules() if module is embedding), "")
    shape = saved.shapes.get(f"{_PREFIX}{key}.weight")
    if shape is not None and len(shape) == 2 and shape[0] != embedding.weight.shape[0]:
        model.resize_token_embeddings(shape[0], mean_resizing=False)


def _refuse_non_finite(name: str, model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if not is_finite(model.get_submodule(key.rpartition(".")[0]), parameter):
            raise AdapterFileError(f"{key} of the base {name} holds NaN or infinite values; get a sound copy of it.")


def _check_loaded(model: peft.PeftModel, saved: SavedAdapter, base: str) -> None:
    """Compare what the model expects of its adapter with what the file holds; PEFT only warns."""
    wanted = {key: tuple(value.shape) for key, value in adapter_state_dict(model, model.active_adapters[0]).items()}
    missing = sorted(set(wanted) - set(saved.shapes))
    # Frozen copies of embeddings, which PEFT saves with some adapters, are no part of it.
    extra = sorted(key for key in set(saved.shapes) - set(wanted) if "lora_" in key)
    different = sorted(key for key in wanted if saved.shapes.get(key, wanted[key]) != wanted[key])
    problems = [f"{key} is missing" for key in missing] + [f"{key} has no place" for key in extra]
    problems += [f"{key} has shape {saved.shapes[key]} instead of {wanted[key]}" for key in different]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise AdapterFileError(
            f"the adapter in {saved.folder} does not fit the base {base}: {'; '.join(problems[:3])}{more}; name the "
            "base that it was trained on with --base."
        )


def _warn_of_rounding(model: peft.PeftModel, saved: SavedAdapter) -> None:
    """Say where the base's dtype is too short for what was trained beside the adapter."""
    state = adapter_state_dict(model, model.active_adapters[0])
    for key, value in state.items():
        kept = saved.dtypes.get(key, value.dtype)
        if value.is_floating_point() and kept.is_floating_point and value.dtype.itemsize < kept.itemsize:
            short, long = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, kept))
            warnings.warn(
                f"{key} is saved in {long} and rounded to {short}, the base's dtype; load the base in {long} "
                f"(--dtype {long}) to keep it.",
                stacklevel=4,
            )
            return


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "Error(s) in loading state_dict for X:" says nothing; the line under it names the tensor.
    chosen = lines[1] if len(lines) > 1 and lines[0].endswith(":") else next(iter(lines), type(error).__name__)
    return chosen.rstrip(".:")[:300]
