"""A Trainer's data, read for a fit: every example once, in order, and without touching any random state."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.readouts import PairwiseReward, Readout

Batch = Mapping[str, Any]

#: TRL's collator of chosen and rejected texts, in one batch without labels.
PREFERENCE_COLLATOR = "DataCollatorForPreference"
#: Collators that join several texts in one row.
_FLATTENING = "DataCollatorWithFlattening"


def sequential(loader: Any, batch_size: int | None, default_size: int, *, stream: bool) -> Iterable[Batch]:
    """Read a Trainer's data set in order and whole, as its loader collates it.

    Args:
        loader: The Trainer's loader, which may shuffle, drop the last batch or spread over devices.
        batch_size: Examples per batch; the loader's own if not given.
        default_size: The same where the loader does not say.
        stream: Whether the data set may be one that can only be iterated over.

    Returns:
        A loader over the same data set with the same collator.

    Raises:
        LaplaceLoRAError: The data set is a stream, or is not known.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        raise LaplaceLoRAError(
            f"the Trainer's {type(loader).__name__} does not say what data set it reads; give "
            "LaplaceCallback(train_dataloader=..., eval_dataloader=...)."
        )
    streamed = isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized)
    if streamed and not stream:
        raise LaplaceLoRAError(
            f"the training data are a stream ({type(dataset).__name__}), which does not say where it ends, and the "
            "posterior counts every example once; train on a data set with a length, or give the examples that count: "
            "LaplaceCallback(train_dataloader=...)."
        )
    own = getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or getattr(loader, "batch_size", None)
    return DataLoader(dataset, batch_size=batch_size or own or default_size, collate_fn=loader.collate_fn)


def innermost_collator(loader: Any) -> Any:
    """Return a loader's collator without the Trainer's wrapper that removes columns.

    Args:
        loader: Any loader.

    Returns:
        The collator, or None where there is none.
    """
    collator = getattr(loader, "collate_fn", None)
    return getattr(collator, "data_collator", collator)


def readout_of_collator(loader: Any) -> Readout | None:
    """Infer the readout from what only the collator tells.

    Args:
        loader: The loader of the training data.

    Returns:
        The readout, or None where model and batches tell.
    """
    kinds = type(innermost_collator(loader)).__mro__
    return PairwiseReward() if any(kind.__name__ == PREFERENCE_COLLATOR for kind in kinds) else None


def refuse_packing(args: Any, loader: Any, settings: tuple[str, ...], remedy: str) -> None:
    """Refuse rows that hold several texts: they cannot be told apart.

    Args:
        args: The Trainer's arguments.
        loader: A loader.
        settings: Names of the arguments that would pack its rows; the first one that is not None decides.
        remedy: What to give instead of the Trainer's loader.

    Raises:
        LaplaceLoRAError: They do.
    """
    given = [(name, getattr(args, name, None)) for name in settings]
    name, packed = next(((name, value) for name, value in given if value is not None), ("", False))
    collator = innermost_collator(loader)
    if not packed and (getattr(collator, "padding_free", False) or type(collator).__name__ == _FLATTENING):
        name, packed = "padding_free", True
    if packed:
        raise LaplaceLoRAError(
            f"{name}=True puts several texts in one row, and the posterior needs one text per row; set {name}=False, "
            f"or give LaplaceCallback({remedy}=...) a loader of unpacked texts."
        )


class FirstBatch:
    """The first batch of a loader, which still knows how many there are."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        """Read it.

        Args:
            loader: Batches.

        Raises:
            LaplaceLoRAError: There is none.
        """
        first = next(iter(loader), None)
        if first is None:
            raise LaplaceLoRAError("the loader gave no batch; check the data.")
        self.batch: Batch = first
        self.dataset = getattr(loader, "dataset", None)
        self._length = len(loader) if isinstance(loader, Sized) and isinstance(self.dataset, Sized) else 1

    def __len__(self) -> int:
        """Return the number of batches of the whole loader."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Yield the one batch."""
        yield self.batch


@contextlib.contextmanager
def untouched_random_state() -> Iterator[None]:
    """Leave every random state as it was found; inside, collators that draw numbers draw the same ones every time.

    Yields:
        Nothing.
    """
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - what collators draw from
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.default_generator.manual_seed(0)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
