"""Data sets of another kind: how well they are told apart and, where their labels mean something here, predicted."""

import dataclasses
from typing import Any

from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import OpenAdapter
from laplace_lora.commands.methods import as_wide, labels_of, methods_of, outputs_of
from laplace_lora.commands.prepared import Prepared, origin
from laplace_lora.commands.same_task import foreign_classes
from laplace_lora.commands.watched import Watched
from laplace_lora.data import DataFile, RowFormat, RowSource, Source, open_rows
from laplace_lora.data.labels import LABEL_FIELDS
from laplace_lora.errors import DataFileError, LaplaceLoRAError, first_line
from laplace_lora.evaluation import (
    Comparison,
    DataSet,
    Line,
    OutOfDistribution,
    Outputs,
    Probabilities,
    compare,
    lines_of,
    ood_scores,
)
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive


@dataclasses.dataclass(frozen=True)
class OutsideData:
    """A data set of another kind, checked.

    Attributes:
        file: Its rows.
        labels_ignored: Why its labels are ignored; None where they are used or there are none.
    """

    file: DataFile
    labels_ignored: str | None


@dataclasses.dataclass(frozen=True)
class Outside:
    """What was found on it.

    Attributes:
        data: The data set.
        detection: How well it is told from the evaluated data.
        comparison: All methods' metrics; None without labels.
        outputs: What was computed.
    """

    data: OutsideData
    detection: OutOfDistribution
    comparison: Comparison | None
    outputs: Outputs

    @property
    def lines(self) -> list[Line]:
        """One line per method, for the table of all data sets."""
        data = DataSet.of(origin(self.data.file))
        return lines_of(data, self.comparison, detection=self.detection)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry in metrics.json.

        Returns:
            ``n``, ``data`` (where it is from), ``detection``, ``comparison`` and ``labels_ignored``; None for what
            there is not.
        """
        return {
            "n": len(self.data.file),
            "data": origin(self.data.file),
            "detection": self.detection.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "labels_ignored": self.data.labels_ignored,
        }


def require_different(sources: tuple[Source, ...]) -> None:
    """Refuse a data set that is given twice: figures are kept by name.

    Args:
        sources: The data sets.

    Raises:
        LaplaceLoRAError: One is given twice.
    """
    names = [str(source) for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LaplaceLoRAError(f"--ood {twice} is given twice; leave one out.")


def scan_outside(opened: OpenAdapter, usual: InputFormat, source: Source, console: Console) -> OutsideData:
    """Check a data set of another kind before anything is run on it, and settle whether its labels are used.

    Labels are used where they fit the task. Where they do not, they are none of its business, and no error.

    Args:
        opened: The adapter.
        usual: How its own inputs are made.
        source: The data set.
        console: Takes messages.

    Returns:
        The data set.
    """
    form = _other_format(opened, usual, source)
    reason = _foreign(opened, source, form, usual)
    if reason is None:
        try:
            return OutsideData(opened.scan(source, form, "optional"), None)
        except DataFileError as error:
            # If the rows are at fault and not their labels, the scan below says so again.
            reason = first_line(error).split(";")[0]
    file = opened.scan(source, form, "ignored", answerable=False)
    if not _has_labels(source):
        return OutsideData(file, None)
    console.say("ood", f"labels of {file.name} are ignored, it is only told apart: {reason}.", reason=reason)
    return OutsideData(file, reason)


def evaluate_outside(
    ready: Prepared, data: OutsideData, inside: Predictive, methods: dict[str, Probabilities], temperature: float | None
) -> Outside:
    """Predict a data set of another kind and measure it.

    Args:
        ready: Adapter and posterior.
        data: The data set.
        inside: Predictions of the evaluated data.
        methods: Their probabilities.
        temperature: Of temperature scaling; None without it.

    Returns:
        The figures.
    """
    batches = Watched(ready.encoder.batches(data.file, ready.config.batch_size), ready.la)
    predictive = ready.predict(batches, f"ood {data.file.name}")
    batches.warn(ready.console, data.file.source, "they are no outside data")
    outside = methods_of(predictive, temperature)
    labels = labels_of(data.file) if data.file.labelled else None
    near, far = as_wide(methods, outside)
    detection = ood_scores(
        near,
        far,
        in_mutual_information={"laplace": inside.mutual_information.numpy()},
        out_mutual_information={"laplace": predictive.mutual_information.numpy()},
    )
    comparison = None if labels is None else compare(outside, labels)
    return Outside(data, detection, comparison, outputs_of(predictive, outside, labels))


def _other_format(opened: OpenAdapter, form: InputFormat, source: Source) -> InputFormat:
    """Keep the template where other data have its fields, and it theirs; else take that of their own shape."""
    first = next(open_rows(source), None)
    if form.template is None or first is None:
        return form
    used = RowFormat(form.template, form.pair_template).fields()
    own = source.form(opened.layout.style) if isinstance(source, RowSource) else None
    # A question asked without its passage would be another task.
    needed = frozenset() if own is None else own.fields() - {"eos_token", "letters"}
    if used - {"choice"} <= set(first.fields) and needed <= used | {"choice"}:
        return form
    return dataclasses.replace(form, template=None, pair_template=None)


def _foreign(opened: OpenAdapter, source: Source, form: InputFormat, usual: InputFormat) -> str | None:
    """Say why labels mean something else than the adapter's classes; None where nothing speaks against them."""
    layout = opened.layout
    if isinstance(source, RowSource):
        return foreign_classes(source, layout, opened.label_names)
    first = next(open_rows(source), None)
    if layout.labels == "class" and first is not None and "choices" not in first.fields and form is not usual:
        return f"its rows have other fields ({', '.join(map(str, first.fields))[:80]}) than the adapter's data"
    return None


def _has_labels(source: Source) -> bool:
    return any(row.fields.get(field) not in (None, "") for row in open_rows(source) for field in LABEL_FIELDS)
