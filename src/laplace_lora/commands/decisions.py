"""Rules for acting on a posterior's confidence: chosen by ``evaluate``, followed by ``predict``."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from laplace_lora.commands.console import Console
from laplace_lora.commands.output import check_writable, whole_file
from laplace_lora.commands.prepared import EvaluateConfig, origin, write_json
from laplace_lora.commands.settings import local_or_hub
from laplace_lora.data import DataFile
from laplace_lora.errors import LaplaceLoRAError, PosteriorFileError
from laplace_lora.evaluation.abstention import Abstention, choose_threshold
from laplace_lora.evaluation.conformal import PredictionSets, choose_sets, prediction_sets
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.evaluation.outputs import Probabilities
from laplace_lora.persistence import DECISIONS_NAME, decisions_document, read_decisions, resolve_directory
from laplace_lora.predictive import Predictive


def require_place(config: EvaluateConfig) -> None:
    """Refuse rules that could not be chosen or saved, before anything is computed.

    Args:
        config: Settings.

    Raises:
        LaplaceLoRAError: A share is none, or the posterior is in no folder here.
    """
    shares = (("--target-risk", config.target_risk, "0.05"), ("--coverage", config.coverage, "0.9"))
    for option, value, usual in shares:
        if value is not None and not 0.0 < value < 1.0:
            raise LaplaceLoRAError(
                f"{option} {value:g} is no share; give a number above 0 and below 1, such as {usual}."
            )
        if value is not None and config.validation is not None and str(config.validation) == str(config.data):
            raise LaplaceLoRAError(
                f"{option} needs rows that nothing was chosen on, and --validation names the same ones; give others."
            )
        if value is not None:
            folder = _folder_of(config)
            if not folder.is_dir():
                raise LaplaceLoRAError(
                    f"{option} saves its rule beside the posterior, and {folder} is no folder here; save the posterior "
                    "to one (LaplaceLoRA.save_pretrained) and give it as --posterior."
                )
            check_writable(folder)


def _folder_of(config: EvaluateConfig) -> Path:
    return Path(config.posterior or config.source.adapter)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Rules that were chosen.

    Attributes:
        abstention: When to answer; None if not asked for.
        sets: What classes to name; None if not asked for.
    """

    abstention: Abstention | None = None
    sets: PredictionSets | None = None

    @classmethod
    def choose(
        cls, config: EvaluateConfig, probabilities: Probabilities, labels: IntArray, seen_in_fit: int, tuned_on: int
    ) -> "Decisions":
        """Choose what the settings ask for.

        Args:
            config: Settings.
            probabilities: The posterior's.
            labels: Of the same rows.
            seen_in_fit: How many of the rows the posterior was fitted to.
            tuned_on: How many of the rows its prior or temperature were chosen on.

        Returns:
            The rules.

        Raises:
            LaplaceLoRAError: Rules are asked for, and rows were in the training data, or tuned on.
        """
        risk, coverage = config.target_risk, config.coverage
        if seen_in_fit and (risk is not None or coverage is not None):
            raise LaplaceLoRAError(
                f"{seen_in_fit} of the rows in {config.data} were in the posterior's training data, and a rule that is "
                "chosen on them promises too much; give other rows."
            )
        if tuned_on and (risk is not None or coverage is not None):
            raise LaplaceLoRAError(
                f"{tuned_on} of the rows in {config.data} were among those that the posterior was tuned on (fit "
                "--validation), and no bound holds for a rule that is chosen on them; give other rows."
            )
        return cls(
            None if risk is None else choose_threshold(probabilities, labels, risk),
            None if coverage is None else choose_sets(probabilities, labels, coverage),
        )

    @property
    def texts(self) -> list[str]:
        """What there is to say, a line each."""
        return [rule.text for rule in (self.abstention, self.sets) if rule is not None]

    @property
    def failures(self) -> list[str]:
        """What could not be had from these rows, and the remedy."""
        found = []
        if self.abstention is not None and self.abstention.threshold is None:
            rule = self.abstention
            found.append(
                f"no confidence keeps --target-risk {rule.target_risk:g}, and predict will abstain from every answer; "
                f"give more rows than {rule.examples} (without a single error it takes {rule.least_answers} answers), "
                "or a larger --target-risk."
            )
        if self.sets is not None and self.sets.examples < self.sets.least_examples:
            found.append(
                f"{self.sets.examples} rows are too few for --coverage {self.sets.coverage:g}, and every set will hold "
                f"all classes; give {self.sets.least_examples} rows or more, or a smaller --coverage."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, of rules that were asked for."""
        rules = {"abstention": self.abstention, "sets": self.sets}
        return {name: rule.to_dict() for name, rule in rules.items() if rule is not None}

    def save(self, config: EvaluateConfig, data: DataFile, console: Console) -> None:
        """Write decisions.json beside the posterior, with what an earlier evaluation has chosen for the same one.

        Args:
            config: Settings.
            data: What the rules were chosen on.
            console: Takes messages.
        """
        chosen = {name: {**rule, "data": origin(data)} for name, rule in self.to_dict().items()}
        if not chosen:
            return
        folder = _folder_of(config)
        path = folder / DECISIONS_NAME
        try:
            before = read_decisions(folder) or {}
        except PosteriorFileError:
            console.warn(f"{path} was damaged, and is written anew with what was chosen now.")
            before = {}
        with whole_file(path) as staged:
            write_json(staged, decisions_document(folder, {**before, **chosen}))
        console.say("decisions", f"predict follows {path}", path=str(path), **self.to_dict())
        for failure in self.failures:
            console.warn(failure)


@dataclasses.dataclass(frozen=True)
class Followed:
    """Rules that predictions follow.

    Attributes:
        threshold: Confidence above which to answer; None where there is no such rule.
        least_probability: Of a class in a set; None where there is no such rule.
    """

    threshold: float | None = None
    least_probability: float | None = None

    @classmethod
    def of(cls, source: str, console: Console, partial: bool) -> "Followed":
        """Read the rules that were saved with a posterior.

        Args:
            source: Folder or hub id of the posterior.
            console: Takes messages.
            partial: Whether only some classes vary, so that confidences are others than those of the rules.

        Returns:
            The rules; none where there are none, or not for this posterior.
        """
        folder = resolve_directory(local_or_hub(source))
        path = folder / DECISIONS_NAME
        if not path.exists():
            return cls()
        found = read_decisions(folder)
        if found is None:
            console.warn(f"{path} is of another fit and is not followed; choose anew: evaluate --target-risk.")
            return cls()
        if partial:
            console.warn(f"{path} is not followed: its rules are of all classes, and --top-k varies some.")
            return cls()
        abstention, sets = found.get("abstention"), found.get("sets")
        threshold = None
        if abstention is not None:
            # Where no threshold keeps the risk, nothing is to be answered.
            threshold = 1.0 if abstention["threshold"] is None else abstention["threshold"]
        rules = cls(threshold, None if sets is None else sets["least_probability"])
        console.say("decisions", f"follows {path}", path=str(path), **dataclasses.asdict(rules))
        return rules

    def mark(self, predictive: Predictive, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
        """Say what the rules make of predictions.

        Args:
            predictive: Of B examples.
            names: Of the classes, or None.

        Returns:
            Per example ``abstain``, and ``prediction_set`` (names, or indices where there are none), where there are
            such rules.
        """
        values = predictive.to("cpu")
        probabilities = values.probabilities.double().nan_to_num(nan=0.0)
        marks: list[dict[str, Any]] = [{} for _ in range(len(values))]
        if self.threshold is not None:
            for mark, confidence in zip(marks, values.confidence.tolist(), strict=True):
                mark["abstain"] = not confidence > self.threshold
        if self.least_probability is not None:
            present = torch.isfinite(values.mean)
            held = prediction_sets(torch.where(present, probabilities, 0.0).numpy(), self.least_probability)
            for mark, row in zip(marks, held, strict=True):
                mark["prediction_set"] = [int(k) if names is None else names[k] for k in row.nonzero()[0]]
        return marks
