"""What a posterior is to be: one frozen object for the API, the command line and the saved files."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from laplace_lora.errors import LaplaceLoRAError

Structure = Literal[
    "kron", "kron_svd", "ekfac", "diag", "exact", "low_rank", "kron_low_rank", "isotropic", "last_layer"
]
Fisher = Literal["auto", "exact", "rademacher", "mc", "empirical"]
KroneckerApproximation = Literal["fitted", "expand", "reduce", "official"]
PriorGroups = Literal["global", "role", "module", "matrix"]
#: What held-out data are scored by.
Score = Literal["nll", "brier", "ece"]
#: Ways of choosing the prior.
TunedBy = Literal["auto", "evidence", "validation", "cross_fit"]
#: Of the rows that ``exact`` keeps.
RowsDtype = Literal["auto", "float32", "bfloat16"]
LikelihoodName = Literal["categorical", "gaussian"]
PredictiveRule = Literal["integral", "probit", "laplace_bridge", "mc"]

#: What ``factor_rank`` is if not given: directions that wide Kronecker factors are kept by, or all weights together.
FACTOR_RANKS: dict[str, int] = {
    "kron": 64,
    "kron_svd": 10,
    "ekfac": 64,
    "last_layer": 64,
    "low_rank": 200,
    "kron_low_rank": 64,
}
#: Structures whose ``factor_rank`` is a number of directions of all weights together.
_JOINT = ("low_rank", "kron_low_rank")
#: Structures that are made of Kronecker factors.
_KRONECKER = ("kron", "kron_svd", "ekfac", "kron_low_rank", "last_layer")
#: Rules of the factors that make no basis of their own, and why.
_NO_BASIS = {
    "reduce": "can leave of a factor nothing but rounding, which has arbitrary eigenvectors",
    "official": "gives the same as 'expand', whose scale does not matter here",
}
#: Up to so many classes ``fisher="auto"`` takes all K-1 backward passes.
MOST_CLASSES_EXACT_FISHER = 16

_CHOICES = {
    "structure": Structure,
    "fisher": Fisher,
    "kfac": KroneckerApproximation,
    "prior_groups": PriorGroups,
    "likelihood": LikelihoodName,
    "predictive": PredictiveRule,
    "rows_dtype": RowsDtype,
}


@dataclasses.dataclass(frozen=True)
class LaplaceConfig:
    """Settings of a Laplace posterior over adapter weights.

    Attributes:
        structure: Shape of the posterior. ``kron``: one Kronecker factor pair per LoRA matrix, matrices
            independent. ``kron_svd``: the same with the paper's own low-rank factors, a running singular value
            decomposition, for comparison. ``ekfac``: the diagonal of every matrix's exact block in the eigenbasis of
            the factors of ``kron``, which takes a second pass over the data. ``diag``: all weights independent.
            ``isotropic``: one variance for all weights of a matrix. ``exact``: the full generalised Gauss-Newton
            matrix (GGN) over all matrices jointly, in dual form. ``low_rank``: ``factor_rank`` directions of it, all
            matrices together, and the rest of its diagonal. ``kron_low_rank``: the same directions, and ``kron`` for
            what they leave. ``last_layer``: ``kron`` over the classification head only, without any backward pass.
        fisher: Which rows make up the GGN. ``exact``: all K-1 of every example (K-1 backward passes per
            batch). ``rademacher``: one random-sign combination of them (one backward pass). ``mc``: one
            label sampled from the model (one backward pass). ``empirical``: the data's own label (one backward pass;
            not the GGN, and near 0 where the model fits the data). ``auto``: ``rademacher`` above 16 classes, but
            ``exact`` with the structures ``exact`` and ``last_layer`` and wherever one backward pass gives all rows
            (options, preferences); ``mc`` for the tokens of texts (``NextToken``).
        kfac: Scale and sharing rule of the Kronecker factors (``kron``, ``kron_svd``, ``ekfac``, ``last_layer``):
            ``fitted`` to the true per-example Jacobians, or K-FAC-``expand`` / K-FAC-``reduce``; ``official``, for
            comparison: ``expand`` with the inputs' factor divided by the number of examples, not of tokens, as in the
            paper's code (which counts padding too; here padding enters nothing). ``ekfac`` knows ``fitted`` and
            ``expand``, ``kron_low_rank`` ``fitted``.
        factor_rank: Directions by which wide Kronecker factors are kept: as a sketch with an isotropic tail (``kron``,
            ``ekfac``, ``last_layer``: factors wider than twice the rank; up to there a whole factor costs no more) or
            cut off (``kron_svd``: wider than the rank). Narrower factors are exact, and so are all with a rank as large
            as the widest. 64 if not given, 10 with ``kron_svd``, as in the paper. With ``low_rank`` and
            ``kron_low_rank`` the number of directions for all weights together, 200 and 64 if not given: exact up to
            as many rows N (K-1). What ``kron_low_rank`` keeps by factors beside them, it keeps as ``kron`` does if no
            rank is given.
        prior_precision: Precision of the zero-mean Gaussian prior, in 1 / weight^2. A float, or one
            positive float per prior group, keyed by group name.
        prior_groups: Which matrices share a prior precision: ``global`` (one), ``role`` (one each for all lora_A, all
            lora_B, and what was trained in full), ``module`` (one per adapted module) or ``matrix`` (one per weight
            matrix, A and B apart).
        include_modules_to_save: Whether modules trained in full beside the adapter (PEFT's
            ``modules_to_save``) belong to the posterior; if not they stay at their trained values.
        target_modules: Names of adapted modules, or their ends, that the posterior covers, as in PEFT's ``LoraConfig``:
            ``("query", "classifier")``. All if not given; the rest stays at its trained values.
        layers_to_transform: Positions of the layers that it covers, also as there; negative ones count from the end:
            ``(-2, -1)`` are the top two, below which the backward pass stops. What is in no layer, as a head, is kept.
        likelihood: ``categorical`` (softmax over K logits) or ``gaussian`` (K real outputs).
        noise_variance: Observation noise of the Gaussian likelihood, in squared units of the output.
        predictive: How the softmax is averaged over the Gaussian logits of classes (real outputs have none).
            ``integral``: by deterministic quadrature. The others are there for comparison, and docs/integrals.md has
            their errors and times. ``probit``: the multi-class closed form; its aleatoric entropy is the integral's.
            ``laplace_bridge``: the mean and expected entropy of a Dirichlet distribution. ``mc``: random draws, as
            in the paper. Averaging over adapters drawn from the posterior takes the model, and is
            ``laplace_lora.methods.weight_sampling``.
        integration_points: Points of ``integral`` for four classes and more, or draws of ``mc``: the paper's are
            100,000.
        rows_folder: A folder on a disk with room for the rows of ``exact``, which then lie in an unnamed file there,
            4 N (K-1) P bytes for P weights, and are read as they are needed: memory does not grow with P. They are
            gone with the posterior; ``save_pretrained`` writes its own copy. In memory if not given. It is not saved.
        rows_dtype: In which ``exact`` keeps its rows: ``float32``, or ``bfloat16`` at half the bytes; ``auto`` is
            float32, or float64 with a float64 model. The rounding of ``bfloat16`` is an error of about 2e-6 of the
            prior's variance, which is not small where the data narrow it some thousandfold: ``fit`` and ``tune_prior``
            warn then (docs/exact.md).
        memory_limit_bytes: ``exact`` refuses to hold rows and Gram matrices beyond this many bytes (with
            ``rows_folder`` Gram matrices alone; what they leave is for Jacobians of data that are predicted together),
            and loads files beyond it memory-mapped. ``low_rank`` and ``kron_low_rank`` refuse directions beyond it, and
            tuning on validation data spectra (784 G K^2 bytes per example and G prior groups while they are joined).
        train_check_bytes: Budget for the training Jacobians kept on the host between ``fit`` and
            ``tune_prior``, with which evidence tuning checks its result against the trained adapter.
        seed: Seed of the random signs and sampled labels of the one-pass Fisher.
        progress: Whether ``fit`` and ``predict_dataset`` show a progress bar.
    """

    structure: Structure = "kron"
    fisher: Fisher = "auto"
    kfac: KroneckerApproximation = "fitted"
    factor_rank: int | None = None
    prior_precision: float | Mapping[str, float] = 1.0
    prior_groups: PriorGroups = "global"
    include_modules_to_save: bool = True
    target_modules: tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    likelihood: LikelihoodName = "categorical"
    noise_variance: float = 1.0
    predictive: PredictiveRule = "integral"
    integration_points: int = 4096
    rows_folder: str | None = None
    rows_dtype: RowsDtype = "auto"
    memory_limit_bytes: int = 4 * 2**30
    train_check_bytes: int = 256 * 2**20
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers.

        Raises:
            LaplaceLoRAError: A setting is not one of its choices, or out of range.
        """
        for name, choices in _CHOICES.items():
            value, allowed = getattr(self, name), get_args(choices)
            if value not in allowed:
                raise LaplaceLoRAError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}.")
        if isinstance(self.prior_precision, Mapping):
            if self.prior_groups == "global":
                raise LaplaceLoRAError(
                    "prior_precision is given per group but prior_groups='global' has one group; "
                    "set prior_groups='role', 'module' or 'matrix', or give one float."
                )
            # A private copy: a caller's later edit must not change a frozen configuration.
            object.__setattr__(self, "prior_precision", {k: float(v) for k, v in self.prior_precision.items()})
            precisions = list(self.prior_precision.values())
        else:
            precisions = [self.prior_precision]
        for name, values in (("prior_precision", precisions), ("noise_variance", [self.noise_variance])):
            if not all(0.0 < float(value) < float("inf") for value in values):
                raise LaplaceLoRAError(f"{name} must be positive and finite; give a number above 0.")
        for name, least in (("integration_points", 64), ("memory_limit_bytes", 0), ("train_check_bytes", 0)):
            if getattr(self, name) < least:
                raise LaplaceLoRAError(f"{name}={getattr(self, name)} is too small; give at least {least}.")
        self._check_selection("target_modules", str)
        self._check_selection("layers_to_transform", int)
        if self.factor_rank is not None and self.structure not in FACTOR_RANKS:
            raise LaplaceLoRAError(
                f"factor_rank={self.factor_rank} is a number of directions, and structure={self.structure!r} has none; "
                f"leave it out, or use one of {', '.join(FACTOR_RANKS)}."
            )
        if self.kfac != "fitted" and self.structure not in _KRONECKER:
            raise LaplaceLoRAError(
                f"kfac={self.kfac!r} is a rule of Kronecker factors, and structure={self.structure!r} has none; leave "
                f"it out, or use one of {', '.join(_KRONECKER)}."
            )
        if self.structure == "ekfac" and self.kfac in _NO_BASIS:
            raise LaplaceLoRAError(
                f"structure='ekfac' takes the basis of the factors alone, and kfac={self.kfac!r} "
                f"{_NO_BASIS[self.kfac]}; "
                "use kfac='fitted' or 'expand'."
            )
        if self.structure == "kron_low_rank" and self.kfac != "fitted":
            raise LaplaceLoRAError(
                "structure='kron_low_rank' factors what its directions leave of the curvature, which factors by "
                f"kfac={self.kfac!r} do not know; use kfac='fitted', or structure='kron'."
            )
        if self.factor_rank is not None:
            whole = isinstance(self.factor_rank, int) and not isinstance(self.factor_rank, bool)
            if not whole or self.factor_rank < 1:
                raise LaplaceLoRAError(
                    f"factor_rank={self.factor_rank!r} is no number of directions; give an int >= 1."
                )

        self._check_rows()

    def _check_rows(self) -> None:
        """Refuse settings of rows where there are none, and a folder that is no name of one."""
        if self.rows_folder is not None:
            if not isinstance(self.rows_folder, str | os.PathLike) or not os.fspath(self.rows_folder):
                raise LaplaceLoRAError(
                    f"rows_folder={self.rows_folder!r} is no folder; give its path, or leave it out."
                )
            object.__setattr__(self, "rows_folder", os.fspath(self.rows_folder))
        for name, default in (("rows_folder", None), ("rows_dtype", "auto")):
            if self.structure != "exact" and getattr(self, name) != default:
                raise LaplaceLoRAError(
                    f"{name}={getattr(self, name)!r} is for the rows that structure='exact' keeps, and "
                    f"structure={self.structure!r} keeps none; leave it out."
                )

    def _check_selection(self, name: str, kind: type) -> None:
        """Make a tuple of names or positions, as JSON knows lists only; refuse anything else."""
        values = getattr(self, name)
        if values is None:
            return
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or not values or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
            what = "names of modules" if kind is str else "positions of layers"
            raise LaplaceLoRAError(f"{name}={values!r} is no list of {what}; give one, or leave it out for all.")
        object.__setattr__(self, name, tuple(values))

    @property
    def rank(self) -> int:
        """``factor_rank``, or what it is if not given."""
        return self.factor_rank or FACTOR_RANKS.get(self.structure, FACTOR_RANKS["kron"])

    @property
    def sketch_rank(self) -> int:
        """Number of directions by which a wide Kronecker factor is kept, where the structure has them."""
        return FACTOR_RANKS["kron"] if self.structure in _JOINT else self.rank

    @property
    def widest_whole_factor(self) -> int:
        """Width up to which Kronecker factors are exact."""
        # X^T (X Omega) takes 4 d m operations for every row of X and X^T X 2 d^2: up to 2 m a sketch saves nothing.
        return self.sketch_rank if self.structure == "kron_svd" else 2 * self.sketch_rank

    def fisher_for(self, classes: int, readout: str = "class_logits") -> Fisher:
        """Say which rows make up the GGN.

        Args:
            classes: K.
            readout: Name of the readout.

        Returns:
            ``fisher``, or what ``auto`` comes to.
        """
        if self.fisher != "auto":
            return self.fisher
        if readout == "next_token":
            return "mc"
        if readout in ("option_scores", "pairwise_reward"):  # one backward pass serves all rows
            return "exact"
        one_pass = classes > MOST_CLASSES_EXACT_FISHER and self.structure in (
            "kron",
            "kron_svd",
            "ekfac",
            "diag",
            "low_rank",
            "kron_low_rank",
            "isotropic",
        )
        return "rademacher" if one_pass else "exact"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values.

        Returns:
            One entry per field.
        """
        values = dataclasses.asdict(self)
        if isinstance(self.prior_precision, Mapping):
            values["prior_precision"] = dict(self.prior_precision)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LaplaceConfig":
        """Rebuild a configuration from :meth:`to_dict`.

        Args:
            values: One entry per field; missing fields take their defaults.

        Returns:
            The configuration.

        Raises:
            LaplaceLoRAError: An entry is not a field of this version.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise LaplaceLoRAError(
                f"unknown settings {', '.join(unknown)}; they come from a newer laplace-lora: upgrade it."
            )
        return cls(**values)
