"""Which adapter of a model is meant, and what of its settings rules it out altogether."""

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from laplace_lora.errors import UnsupportedAdapterError

# Initialisations that also change the base's weights, so that the adapter does not start at zero.
_ALTERING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def active_adapter(model: nn.Module) -> str:
    """Return the name of the one active adapter.

    Args:
        model: A ``peft.PeftModel``.

    Returns:
        Its name.

    Raises:
        UnsupportedAdapterError: None, or several, or a merged or disabled one is active, or it is no LoRA.
    """
    if not isinstance(model, peft.PeftModel):
        raise UnsupportedAdapterError(
            f"expected a peft.PeftModel, got {type(model).__name__}; wrap the model with peft.get_peft_model or "
            "load it with peft.PeftModel.from_pretrained."
        )
    active = model.active_adapters
    if len(active) != 1:
        raise UnsupportedAdapterError(
            f"adapters {', '.join(active)} are active at once; activate one with model.set_adapter(name)."
        )
    config = model.peft_config[active[0]]
    if config.peft_type != peft.PeftType.LORA:
        raise UnsupportedAdapterError(
            f"adapter {active[0]!r} is of type {config.peft_type}, not LORA; train a LoRA adapter."
        )
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise UnsupportedAdapterError(f"the adapter is merged into {name}; call model.unmerge_adapter() first.")
        if isinstance(module, BaseTunerLayer) and module.disable_adapters:
            raise UnsupportedAdapterError(f"the adapter is disabled at {name}; call model.enable_adapter_layers().")
    return active[0]


def task_type(model: nn.Module) -> str | None:
    """Return the PEFT task type of the active adapter.

    Args:
        model: The PEFT model.

    Returns:
        ``SEQ_CLS``, ``CAUSAL_LM``, ..., or None where none was given.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    kind = configs[active_adapter(model)].task_type
    return None if kind is None else str(getattr(kind, "value", kind))


def altered_start(model: nn.Module) -> str | None:
    """Say whether the adapter's zero is not the pretrained model.

    PiSSA and its kin move a part of the base's weights into the adapter before training. The posterior around the
    trained weights is the same as for any adapter; but a prior around zero then pulls towards a model without that
    part, and |theta|^2 measures it, so that the evidence says nothing of how much was learnt.

    Args:
        model: The PEFT model.

    Returns:
        Name of the initialisation, or None for those that leave the base alone.
    """
    how = getattr(getattr(model, "peft_config")[active_adapter(model)], "init_lora_weights", True)  # noqa: B009
    return how if isinstance(how, str) and how.lower().startswith(_ALTERING) else None
