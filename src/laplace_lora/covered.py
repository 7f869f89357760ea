"""What a posterior is about, once it is known how the model is read: its weight matrices and their prior groups."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from laplace_lora.adapters import AdapterSites, Fingerprint, Site, adapter_state_dict, fingerprint, moved_to
from laplace_lora.config import LaplaceConfig, TunedBy
from laplace_lora.curvature import FitResult
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.persistence import InputFormat, SavedState
from laplace_lora.prior import TailCheck, squared_norms
from laplace_lora.reading import Reader
from laplace_lora.readouts import Readout
from laplace_lora.structures import choose_rows, choose_sites


@dataclasses.dataclass(frozen=True)
class Covered:
    """Readout, weight matrices and prior groups of a posterior.

    Attributes:
        reader: How outputs are read, and their likelihood.
        adapter: The weights that the posterior covers, and what it holds fixed.
        shapes: Names and sizes of the weight matrices.
        groups: Which of them share a prior precision.
    """

    reader: Reader
    adapter: AdapterSites
    shapes: tuple[MatrixShape, ...]
    groups: Groups

    @classmethod
    def by(cls, readout: Readout, found: AdapterSites, model: nn.Module, config: LaplaceConfig) -> "Covered":
        """Choose the weights that matter to a readout.

        Args:
            readout: How outputs are read.
            found: All of the adapter's weights.
            model: The PEFT model.
            config: Settings.

        Returns:
            What the posterior will be about.
        """
        reader = Reader.of(readout, model, config)
        adapter = choose_rows(choose_sites(found, config), readout.head_rows)
        shapes = tuple(
            MatrixShape(site.name, site.module, site.out_features, site.in_features, site.trained_in_full)
            for site in adapter.sites
        )
        return cls(reader, adapter, shapes, Groups.of(shapes, config.prior_groups))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weight matrices."""
        return self.adapter.sites

    def squared_norms(self) -> Tensor:
        """Return (G,) |theta_g|^2 of the trained weights of every group."""
        return squared_norms([site.weights() for site in self.sites], self.groups.index)

    def squared_distances(self, model: nn.Module, starting_point: Mapping[str, Tensor]) -> Tensor:
        """Return (G,) |theta_g - theta_g0|^2 of every group, theta_0 the adapter before its training.

        Args:
            model: The PEFT model; given the starting point for a moment, and put back bit by bit.
            starting_point: theta_0, under PEFT's keys.

        Returns:
            float64.

        Raises:
            LaplaceLoRAError: The keys or shapes are not those of this adapter.
        """
        current = adapter_state_dict(model, self.adapter.adapter)
        wrong = sorted(
            key
            for key in current.keys() | starting_point.keys()
            if key not in current or key not in starting_point or current[key].shape != starting_point[key].shape
        )
        if wrong:
            raise LaplaceLoRAError(
                f"the starting point is not this adapter's: {', '.join(wrong[:3])} differ in name or shape; give the "
                "state dict of the same adapter before its training (peft.get_peft_model_state_dict)."
            )
        trained = [site.weights().double().clone() for site in self.sites]
        with moved_to(model, starting_point):
            start = [site.weights().double().clone() for site in self.sites]
        return squared_norms([a - b for a, b in zip(trained, start, strict=True)], self.groups.index)

    def fingerprint(self, model: nn.Module) -> Fingerprint:
        """Digest the model and the adapter.

        Args:
            model: The PEFT model.

        Returns:
            Its fingerprint.
        """
        return fingerprint(model, self.adapter.adapter)

    def saved_state(
        self,
        model: nn.Module,
        config: LaplaceConfig,
        input_format: InputFormat,
        precision: Sequence[float],
        tuned_by: TunedBy | None,
        noise_variance: float | None,
        fitted: FitResult,
        tail_check: TailCheck | None,
        temperature: float,
        centre: Tensor | None,
        keeps_answers: bool,
    ) -> SavedState:
        """Describe a fitted posterior for its file.

        Args:
            model: The PEFT model.
            config: Settings.
            input_format: How inputs are made.
            precision: (G,) prior precisions.
            tuned_by: ``auto``, ``evidence``, ``validation``, ``cross_fit`` or None.
            noise_variance: Where it was tuned; else None.
            fitted: What the pass over the training data left.
            tail_check: Effective number of parameters with and without the tails of sketched factors.
            temperature: Divides the mean logits of classes.
            centre: (G,) squared distances from the prior's mean; None where that is zero.
            keeps_answers: Whether the classes' order in predictions is that of their mean logits.

        Returns:
            What posterior_config.json holds.
        """
        return SavedState(
            library_version=importlib.metadata.version("laplace-lora"),
            config=config,
            readout=self.reader.readout.name,
            input_format=input_format,
            fingerprint=self.fingerprint(model),
            matrices=self.shapes,
            held_at_map=self.adapter.held_at_map,
            prior_precision=tuple(precision),
            tuned_by=tuned_by,
            examples=fitted.examples,
            classes=fitted.classes,
            log_likelihood=fitted.log_likelihood,
            accuracy=fitted.accuracy,
            readout_settings=self.reader.readout.settings(),
            noise_variance=noise_variance,
            targets=fitted.targets,
            effective_parameters=None if tail_check is None else dataclasses.asdict(tail_check),
            temperature=temperature,
            squared_distances=None if centre is None else tuple(centre.tolist()),
            keeps_answers=keeps_answers,
        )
