"""What keeps a long training alive, and its checkpoints worth having.

Hooks of Detectron2's trainer, on every process. Faults that cost an evaluation, an image or a log
line are logged and counted; with ``STRICT`` they end the training.
"""

import logging
from collections import Counter

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from amwc_d2.data.loading import derive_seed

logger = logging.getLogger(__name__)

MAX_REFUSED = 10  # steps refused one after the other before the training has diverged


class StepSeed(HookBase):
    """Random numbers of a step (dropout, lambda, noise) come from seed, process and iteration.

    So that they do not depend on what came before: a resumed run draws the same.
    """

    def before_step(self):
        seed = derive_seed(self.trainer.seed, comm.get_rank(), self.trainer.iter)
        torch.manual_seed(seed)
        for estimator in self.trainer.estimators:
            if estimator.generator is not None:
                estimator.generator.manual_seed(seed + 1)


class RefuseNonFinite(HookBase):
    """Of the inner trainer: a step whose gradient is not finite changes no weight.

    Raises:
        FloatingPointError: ten steps in a row.
    """

    def __init__(self, faults):
        """
        Args:
            faults (Counter): gets the steps refused.
        """
        self.faults = faults
        self.in_a_row = 0

    def after_backward(self):
        parameters = [
            (name, p) for name, p in self.trainer.model.named_parameters() if p.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm([p.grad for _, p in parameters]))
        if torch.isfinite(norms).all():
            self.in_a_row = 0
            return
        bad = [name for (name, _), norm in zip(parameters, norms) if not torch.isfinite(norm)]
        self.in_a_row += 1
        self.faults["steps refused"] += 1
        logger.warning(
            "Iteration %d is refused: the gradient of %d parameters is NaN or infinite, the first "
            "is %s. Its weights stay as they are (%d steps refused so far).",
            self.trainer.iter,
            len(bad),
            bad[0],
            self.faults["steps refused"],
        )
        if self.in_a_row == MAX_REFUSED:
            raise FloatingPointError(
                f"the gradient was NaN or infinite in {MAX_REFUSED} steps in a row, in {bad[0]}: "
                "the training has diverged. Lower SOLVER.BASE_LR, or turn SOLVER.CLIP_GRADIENTS "
                "on, and start from an earlier checkpoint."
            )
        self.trainer.optimizer.zero_grad(set_to_none=True)  # the optimiser passes over None


class SaveCheckpoints(HookBase):
    """Saves every ``period`` steps, at the end, before every evaluation, and when interrupted.

    Checkpoints off the period go when the next one is there. A full disk costs a checkpoint; the
    last one must be written.
    """

    def __init__(self, period, eval_period, faults, strict):
        """
        Args:
            period, eval_period (int): steps; an ``eval_period`` of 0 evaluates at the end only.
            faults (Counter): gets the checkpoints that could not be written.
            strict (bool): end the training where one could not.
        """
        self.period, self.eval_period = period, eval_period
        self.faults, self.strict = faults, strict
        self.extra = None

    def after_step(self):
        done = self.trainer.iter + 1
        last = done >= self.trainer.max_iter
        regular = done % self.period == 0
        interrupted = self.trainer.interruption.agreed()
        evaluated = self.eval_period > 0 and done % self.eval_period == 0
        if last or regular or interrupted or evaluated:
            name = "model_final" if last else f"model_{self.trainer.iter:07d}"
            self._save(name, keep=last or regular, must=last or interrupted)
        if interrupted:
            logger.warning(
                "%s: %d of %d iterations are done and saved in %s. The same command with --resume "
                "goes on from there.",
                self.trainer.interruption.name,
                done,
                self.trainer.max_iter,
                self.trainer.cfg.OUTPUT_DIR,
            )
            comm.synchronize()  # the launcher ends all processes when the first has ended
            self.trainer.interruption.leave()

    def _save(self, name, keep, must):
        try:
            self.trainer.save(name)
        except OSError as error:
            if self.strict or must:
                raise
            self.faults["checkpoints not written"] += 1
            logger.error("%s. The training goes on.", error)
            return
        if self.extra is not None:
            self.trainer.checkpointer.remove(self.extra)
        self.extra = None if keep else name


class EvaluateOrGoOn(EvalHook):
    """An evaluation that fails costs its results, not the training; the last one must not fail."""

    def __init__(self, eval_period, eval_function, faults, strict):
        """
        Args:
            eval_period, eval_function: as of ``EvalHook``.
            faults (Counter): gets the evaluations that failed.
            strict (bool): end the training where one does.
        """
        super().__init__(eval_period, eval_function)
        self.faults, self.strict = faults, strict

    def _do_eval(self):
        results, failure = None, None
        with self.trainer.interruption.at_once():
            try:
                results = self._func()
            except Exception as error:
                failure = error
                logger.exception("The evaluation after iteration %d failed.", self.trainer.iter)
            failed = any(comm.all_gather(failure is not None))
        self.trainer.model.train()
        if failed and (self.strict or self.trainer.iter >= self.trainer.max_iter):
            raise failure or RuntimeError("the evaluation failed on another process")
        if failed:
            self.faults["evaluations failed"] += 1
            logger.error("The training goes on without the results of this evaluation.")
        elif results:
            self.trainer.storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:  # not after a failure or an interruption
            self._do_eval()
        del self._func  # it may refer to the trainer


class TolerantWriter(EventWriter):
    """A writer of figures whose errors (a full disk) are logged once and counted."""

    def __init__(self, writer, faults):
        """
        Args:
            writer (EventWriter): any.
            faults (Counter): gets the writes that failed.
        """
        self.writer, self.faults = writer, faults

    def write(self):
        self._try(self.writer.write)

    def close(self):
        self._try(self.writer.close)

    def _try(self, function):
        name = type(self.writer).__name__
        try:
            function()
        except OSError as error:
            self.faults[f"writes of {name} failed"] += 1
            if self.faults[f"writes of {name} failed"] == 1:
                logger.error("%s cannot write (%s); the training goes on without.", name, error)


def describe(faults: Counter) -> str:
    """Such as "2 steps refused, 1 evaluations failed"."""
    return ", ".join(f"{count} {what}" for what, count in faults.items())
