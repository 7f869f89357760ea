"""An adapter of a benchmark, opened with its data: what methods are fitted to and asked about."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor

from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.trainings import ALL, Training, Trainings, checkpoints
from laplace_lora.commands.console import Console
from laplace_lora.commands.evaluate_outside import scan_outside
from laplace_lora.commands.inputs import OpenAdapter, open_adapter
from laplace_lora.commands.methods import labels_of
from laplace_lora.commands.readout_choice import ReadoutWish, short_name
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.data import DataFile
from laplace_lora.data.collation import collate
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.loading import saved_input_format, saved_readout
from laplace_lora.persistence import STARTING_POINT_NAME, InputFormat
from laplace_lora.readouts import Readout
from laplace_lora.retraining import Retraining

Batch = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A data set that methods are asked about.

    Attributes:
        file: Its rows.
        batches: Their tokens.
        labels: (N,) class numbers; None where there are none, or they mean something else than the classes.
        labels_ignored: Why they mean something else, or None.
    """

    file: DataFile
    batches: list[Batch]
    labels: IntArray | None
    labels_ignored: str | None = None


class States(Sequence[Mapping[str, Tensor]]):
    """Adapters in files, read as they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Name them.

        Args:
            folders: One per adapter.
        """
        self._folders = folders

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._folders)

    def __getitem__(self, index: Any) -> Any:
        """Read one, or choose several without reading any."""
        if isinstance(index, slice):
            return States(self._folders[index])
        return load_file(self._folders[index] / SAFETENSORS_WEIGHTS_NAME)


class OtherStates(States):
    """Adapters of other seeds, trained when they are asked for."""

    def __init__(self, trainings: Trainings, wanted: Sequence[Training]) -> None:
        """Name them.

        Args:
            trainings: Trains them.
            wanted: Which.
        """
        self._trainings, self._wanted = trainings, wanted

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._wanted)

    def __getitem__(self, index: Any) -> Any:
        """Read one, or choose several without training any."""
        if isinstance(index, slice):
            return OtherStates(self._trainings, self._wanted[index])
        return load_file(self._trainings.folder(self._wanted[index]) / SAFETENSORS_WEIGHTS_NAME)


@dataclasses.dataclass(frozen=True)
class OpenedTraining:
    """One adapter with all that methods may want of it.

    Attributes:
        training: Which.
        folder: The adapter.
        opened: The loaded model.
        readout: How it is read.
        start: The adapter before its training.
        train: The training rows' batches.
        held_out: The held-out rows', where the training left some out.
        test: The test rows.
        outside: Data of other kinds, by name.
        retrain: Trains anew.
        others: Adapters of other seeds.
        cut: How many inputs of which data are cut to the most tokens.
    """

    training: Training
    folder: Path
    opened: OpenAdapter
    readout: Readout
    start: dict[str, Tensor]
    train: list[Batch]
    held_out: list[Batch] | None
    test: Asked
    outside: dict[str, Asked]
    retrain: Retraining
    others: States
    cut: dict[str, int]

    @classmethod
    def of(cls, training: Training, trainings: Trainings, config: BenchConfig, others: int) -> "OpenedTraining":
        """Open an adapter, trained now if need be, and read its data.

        Args:
            training: Which.
            trainings: Has it.
            config: Settings.
            others: Adapters of other seeds that methods may ask for.

        Returns:
            All of it.
        """
        folder = trainings.folder(training)
        source = AdapterSource(str(folder), dtype=config.dtype, device=config.device, quantization=config.quantization)
        opened = open_adapter(source)
        given, saved = saved_input_format(folder), saved_readout(folder)
        assert given is not None and saved is not None  # train writes both
        wish = ReadoutWish(short_name(saved.name), saved=saved)
        data = opened.choose(wish, trainings.rows(training.task, training.part), given)
        assert opened.readout is not None
        form = opened.complete(given, data)
        start = load_file(folder / STARTING_POINT_NAME)
        found = _Data(opened, form, config.batch_size, trainings.warn_once)
        return cls(
            training,
            folder,
            opened,
            opened.readout,
            start,
            found.batches(data),
            None if training.part == ALL else found.labelled(trainings.rows(training.task, "held_out")).batches,
            found.labelled(trainings.test_rows(training.task)),
            {name: found.outside(trainings.other_rows(name)) for name in config.ood.get(training.task, ())},
            found.retraining(data, training.seed, start, config),
            OtherStates(trainings, training.others(others)),
            found.cut,
        )

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of the training's checkpoints, in order."""
        return checkpoints(self.folder)


@dataclasses.dataclass(frozen=True)
class _Data:
    """Reads data as an adapter's training did."""

    opened: OpenAdapter
    form: InputFormat
    batch_size: int
    warn: Callable[[str], None]
    cut: dict[str, int] = dataclasses.field(default_factory=dict)

    def batches(self, file: DataFile) -> list[Batch]:
        encoder = self.opened.encoder(self.form)
        found = list(encoder.batches(file, self.batch_size))
        if encoder.truncated:
            self.cut[file.name] = encoder.truncated
            self.warn(
                f"{encoder.truncated} of {len(file)} inputs of {file.name} are cut to {encoder.max_length} tokens, at "
                f"their {encoder.cut_at}; --max-length says how many are kept."
            )
        return found

    def labelled(self, source: Any) -> Asked:
        file = self.opened.scan(source, self.form, "required")
        if self.opened.readout is not None and self.opened.readout.name == "option_scores":
            self.opened.classes = max(self.opened.classes, file.most_choices)
        return self._asked(file)

    def outside(self, source: Any) -> Asked:
        found = scan_outside(self.opened, self.form, source, Console(quiet=True))
        return self._asked(found.file, found.labels_ignored)

    def _asked(self, file: DataFile, labels_ignored: str | None = None) -> Asked:
        labels = labels_of(file) if file.labelled else None
        return Asked(file, self.batches(file), labels, labels_ignored)

    def retraining(self, file: DataFile, seed: int, start: Mapping[str, Tensor], config: BenchConfig) -> Retraining:
        encoder, tokenizer = self.opened.encoder(self.form), self.opened.tokenizer
        rows = [encoder.encode([example], file.name) for example in file]
        assert self.opened.readout is not None
        return Retraining(
            self.opened.model,  # type: ignore[arg-type]
            tokenizer,
            self.opened.readout,
            rows,
            dataclasses.replace(config.training, seed=seed),
            start,
            partial(collate, padding=tokenizer.pad_token_id, side=self.form.padding_side or "right"),
            progress=False,
        )
