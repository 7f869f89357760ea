"""LaplaceCallback: fits the posterior of a Trainer's adapter, logs what it says and saves it with the checkpoints."""

import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback

from laplace_lora.adapters import fingerprint
from laplace_lora.callback import loaders, measures, trainers
from laplace_lora.config import LaplaceConfig, TunedBy
from laplace_lora.curvature import backward_passes
from laplace_lora.errors import LaplaceLoRAError, NotFittedError
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.readouts import Readout

Batch = Mapping[str, Any]
_WITHOUT_HELD_OUT = ("auto", "evidence")
_METHODS = (*_WITHOUT_HELD_OUT, "validation")


class LaplaceCallback(TrainerCallback):
    """Fits a Laplace posterior when training ends, or every n steps too, with the Trainer's own data.

    For ``transformers.Trainer`` and TRL's ``SFTTrainer`` and ``RewardTrainer`` with a PEFT LoRA adapter, in one
    process. Training is not changed by it, to the last bit.

    **Data.** The Trainer's training set, read in order with the Trainer's collator: every example once, whatever the
    Trainer's sampler does. The posterior is that of the readout's likelihood: it knows nothing of label smoothing,
    class weights or a loss of one's own.

    **Log.** Through the Trainer's callbacks, so that ``state.log_history`` and the reporters have it:
    ``laplace/log_evidence`` (nats), ``laplace/effective_parameters``, ``laplace/prior_precision`` (of several groups
    the geometric mean), ``laplace/noise_variance`` with real outputs; with an evaluation set ``laplace/eval_nll_map``,
    ``laplace/eval_nll``, ``laplace/eval_ece_map``, ``laplace/eval_ece``: before (the trained adapter alone) and after.
    Real outputs have no ECE, and texts (``NextToken``) ``laplace/eval_nll_map`` per token and
    ``laplace/eval_log_prob_std`` only; see :func:`laplace_lora.callback.measures.evaluation_measures`. Several
    evaluation sets are named as by the Trainer, ``laplace/eval_<set>_nll``. What the fit cost:
    ``laplace/forward_passes`` and ``laplace/backward_passes``, of one batch each, and ``laplace/seconds``.

    **Files.** A checkpoint gets the posterior of its weights (``posterior_config.json``, ``posterior.safetensors``) if
    it was written at a step that was fitted, and the one that holds the final weights always does. ``every_n_steps``
    equal to ``save_steps`` gives every checkpoint one. The last posterior goes into ``output_dir`` too, where
    ``trainer.save_model()`` puts the adapter. With ``load_best_model_at_end`` it is that of the best weights.

    **Errors.** What can be known is refused before training: the adapter and the first batch are tried out. A fit that
    fails later warns and does not end the training; :attr:`laplace` then raises its error.

    Example:
        >>> trainer = Trainer(..., callbacks=[LaplaceCallback()])      # doctest: +SKIP
        >>> trainer.train(); trainer.save_model()                      # doctest: +SKIP
    """

    def __init__(
        self,
        config: LaplaceConfig | None = None,
        readout: Readout | None = None,
        every_n_steps: int | None = None,
        prior: str | float | Mapping[str, float] = "auto",
        train_dataloader: Iterable[Batch] | None = None,
        eval_dataloader: Iterable[Batch] | None = None,
        output_dir: str | Path | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Set what to fit, and when.

        Args:
            config: Settings of the posterior; the defaults of :class:`LaplaceConfig` if not given.
            readout: How the model is read; inferred from model, collator and data where there is only one.
            every_n_steps: Fit after every so many optimizer steps too; at the end only if not given.
            prior: ``"auto"`` or ``"evidence"`` (centred on the adapter as training found it), ``"validation"`` (on the
                evaluation set, which "after" then has seen), or the prior precision itself, which is then not tuned.
            train_dataloader: Batches to fit to, instead of the Trainer's data; read as they come, again for every fit.
            eval_dataloader: Labelled batches to measure, instead of the Trainer's evaluation set.
            output_dir: Folder of the last posterior; the Trainer's if not given.
            batch_size: Examples per batch of the fit and of its evaluation; the Trainer's if not given.

        Raises:
            LaplaceLoRAError: A setting is out of range.
        """
        self.config = config or LaplaceConfig()
        if isinstance(prior, str) and prior not in _METHODS:
            raise LaplaceLoRAError(
                f"prior={prior!r} is not known; choose auto, evidence, validation or a prior precision."
            )
        if not isinstance(prior, str):
            self.config = dataclasses.replace(self.config, prior_precision=prior)
        for name, value in (("every_n_steps", every_n_steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise LaplaceLoRAError(f"{name}={value} is too small; give at least 1, or leave it out.")
        for name, loader in (("train_dataloader", train_dataloader), ("eval_dataloader", eval_dataloader)):
            if isinstance(loader, Iterator):
                raise LaplaceLoRAError(
                    f"{name} is a {type(loader).__name__}, which can be read only once; give a DataLoader or a list of "
                    "batches."
                )
        self.readout = readout
        self.every_n_steps = every_n_steps
        self.prior = prior
        self.output_dir = output_dir
        self.batch_size = batch_size
        self._given_train, self._given_eval = train_dataloader, eval_dataloader
        self._attached: Any | None = None
        self._trainer: Any | None = None
        self._eval_loaders: dict[str, Iterable[Batch]] = {}
        self._la: LaplaceLoRA | None = None
        self._failure: Exception | None = None
        self._weights: str | None = None
        self._start: dict[str, Tensor] | None = None

    @property
    def laplace(self) -> LaplaceLoRA:
        """The last posterior.

        Raises:
            LaplaceLoRAError: The last fit failed.
            NotFittedError: There was none.
        """
        if self._failure is not None:
            raise self._failure
        if self._la is None:
            raise NotFittedError("the callback has fitted nothing yet; call trainer.train() first.")
        return self._la

    def attach(self, trainer: Any) -> "LaplaceCallback":
        """Name the Trainer, and become one of its callbacks.

        Only needed where the Trainer cannot find itself: ``callbacks=[LaplaceCallback()]`` and
        ``trainer.add_callback`` do as well.

        Args:
            trainer: The Trainer.

        Returns:
            Itself.
        """
        self._attached = trainer
        if not any(entry is self for entry in trainer.callback_handler.callbacks):
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot be fitted, before any time is spent on training it.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Model and loaders.

        Raises:
            LaplaceLoRAError: It cannot be fitted.
        """
        self._la, self._failure, self._weights = None, None, None
        if args.world_size > 1:
            raise LaplaceLoRAError(
                f"LaplaceCallback fits in one process, and {args.world_size} are training; train without it, and fit "
                "the saved adapter: LaplaceLoRA(model).fit(loader), or laplace-lora fit."
            )
        self._trainer = trainers.calling_trainer(self) or self._attached
        if self._trainer is None:
            warnings.warn(
                "no Trainer was found, so that reporters will not see what LaplaceCallback logs; call "
                "callback.attach(trainer).",
                stacklevel=2,
            )
        else:
            trainers.go_first(self, self._trainer.callback_handler)
        with loaders.untouched_random_state():
            self._eval_loaders = self._evaluation(args, kwargs)
            if self.prior == "validation" and len(self._eval_loaders) != 1:
                raise LaplaceLoRAError(
                    f"prior='validation' needs one evaluation set, and there are {len(self._eval_loaders)}; give "
                    "LaplaceCallback(eval_dataloader=...), or the Trainer an eval_dataset."
                )
            # A run that goes on from a checkpoint began elsewhere; there, the prior is centred on zero.
            self._start = None if state.global_step else trainers.adapter_of(kwargs["model"])
            self._try_out(args, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit if this step is one of every n.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Model and loaders.
        """
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._fit(args, state, control, kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the posterior with the checkpoint, if its weights were fitted.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: The model.
        """
        folder = trainers.checkpoint_folder(args, state)
        if self._is_fitted(kwargs) and folder.is_dir():
            self.laplace.save_pretrained(folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit the final weights, if that was not done already, and save their posterior.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Model and loaders.
        """
        if not self._is_fitted(kwargs):
            self._fit(args, state, control, kwargs)
        if self._failure is None:
            folders = [Path(self.output_dir or args.output_dir), trainers.final_checkpoint(args, state)]
            for folder in folders:
                if folder is not None:
                    self.laplace.save_pretrained(folder)

    def _is_fitted(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether the last posterior is that of the weights as they are now."""
        return self._la is not None and self._failure is None and self._weights == _digest(kwargs["model"])

    def _fit(self, args: Any, state: Any, control: Any, kwargs: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        try:
            with loaders.untouched_random_state():
                la, metrics = self._fitted(self._training(args, kwargs), self._evaluation_now(args, kwargs), kwargs)
        except (LaplaceLoRAError, torch.OutOfMemoryError) as error:
            self._la, self._failure = None, _explained(error)
            warnings.warn(f"no posterior at step {state.global_step}: {self._failure}", stacklevel=2)
            return
        self._la, self._failure, self._weights = la, None, _digest(kwargs["model"])
        metrics["seconds"] = time.perf_counter() - start
        logged = {f"laplace/{name}": value for name, value in metrics.items()}
        trainers.log(self._trainer, args, state, control, logged)

    def _fitted(
        self, train: Iterable[Batch], evaluation: Mapping[str, Iterable[Batch]], kwargs: Mapping[str, Any]
    ) -> tuple[LaplaceLoRA, dict[str, float]]:
        model = trainers.peft_model(kwargs["model"])
        counted = measures.Counted(train)
        with trainers.own_precision(model):
            la = LaplaceLoRA(model, self.config, self.readout or loaders.readout_of_collator(train)).fit(counted)
            evaluated = 0
            if self.prior in _WITHOUT_HELD_OUT:
                la.tune_prior(cast(TunedBy, self.prior), starting_point=self._start)
            elif self.prior == "validation":
                watched = measures.Counted(next(iter(evaluation.values())))
                la.tune_prior("validation", watched)
                evaluated += watched.batches
            metrics = measures.fit_measures(la)
            for name, loader in evaluation.items():
                found, batches = measures.evaluation_measures(la, loader, name)
                metrics |= found
                evaluated += batches
        metrics["forward_passes"] = float(counted.batches + evaluated)
        classes = la.training.classes if la.training is not None else 0
        fitting = backward_passes(la.config, la.readout, classes, fitting=True)
        predicting = backward_passes(la.config, la.readout, classes)
        metrics["backward_passes"] = float(counted.batches * fitting + evaluated * predicting)
        return la, metrics

    def _try_out(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Fit to the first batch: what is not handled is refused in its own words."""
        model = trainers.peft_model(kwargs["model"])
        loader = self._training(args, kwargs)
        first = loaders.FirstBatch(loader)
        config = dataclasses.replace(self.config, progress=False)
        readout = self.readout or loaders.readout_of_collator(loader)
        with trainers.own_precision(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            la = LaplaceLoRA(model, config, readout).fit(first)
            if self.prior in _WITHOUT_HELD_OUT:
                la.require_tunable(self.prior, known_start=self._start is not None)
                la.log_marginal_likelihood()  # not yet tuned: one batch is too little
            for name, evaluation in self._eval_loaders.items():
                held_out = loaders.FirstBatch(evaluation)
                if self.prior == "validation":
                    la.tune_prior("validation", held_out)
                measures.evaluation_measures(la, held_out, name)

    def _training(self, args: Any, kwargs: Mapping[str, Any]) -> Iterable[Batch]:
        if self._given_train is not None:
            loaders.refuse_packing(args, self._given_train, (), "train_dataloader")
            return self._given_train
        loader = kwargs.get("train_dataloader")
        if loader is None:
            raise LaplaceLoRAError("the Trainer has no training data; give LaplaceCallback(train_dataloader=...).")
        for setting in ("packing", "padding_free"):
            loaders.refuse_packing(args, loader, (setting,), "train_dataloader")
        return loaders.sequential(loader, self.batch_size, args.train_batch_size, stream=False)

    def _evaluation(self, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Iterable[Batch]]:
        """Return loaders of the evaluation sets by the beginning of their metrics' names."""
        if self._given_eval is not None:
            return {"eval": self._given_eval}
        sets = getattr(self._trainer, "eval_dataset", None)
        found: dict[str, Any] = {}
        if self._trainer is None or sets is None:
            found = {} if kwargs.get("eval_dataloader") is None else {"eval": kwargs["eval_dataloader"]}
        elif isinstance(sets, dict):
            found = {f"eval_{name}": self._trainer.get_eval_dataloader(name) for name in sets}
        else:
            found = {"eval": self._trainer.get_eval_dataloader()}
        for loader in found.values():
            loaders.refuse_packing(args, loader, ("eval_packing", "packing"), "eval_dataloader")
        size = args.eval_batch_size
        return {name: loaders.sequential(loader, self.batch_size, size, stream=True) for name, loader in found.items()}

    def _evaluation_now(self, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Iterable[Batch]]:
        """Return the evaluation sets known from the start, or the one that the Trainer has used since."""
        return self._eval_loaders or self._evaluation(args, kwargs)


def _digest(model: Any) -> str:
    inner = trainers.peft_model(model)
    return fingerprint(inner, inner.active_adapters[0]).adapter_sha256


def _explained(error: Exception) -> LaplaceLoRAError:
    if isinstance(error, LaplaceLoRAError):
        return error
    return LaplaceLoRAError(
        "the fit ran out of memory: unlike training it also runs the batches in the precision of the weights; give "
        "LaplaceCallback(batch_size=...), a smaller one."
    )
