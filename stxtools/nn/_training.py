"""One training loop for every module: Lightning, early stopping, the best weights kept, quiet."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Unpack

import torch
from torch.utils.data import DataLoader

from stxtools._globals import exclusive
from stxtools._lazy import importing
from stxtools._progress import progress
from stxtools._settings import settings

from ._recipe import Run, Training, completed, seeded

with importing():
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

_MOST_DEVICES = 64

EXPLODED = 10.0  # times the first loss: the best of a training that got somewhere is never as high


class Task(pl.LightningModule):
    """A Lightning module whose losses end up in :attr:`history`."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training_params = training
        self.history: list[dict[str, float]] = []
        self.step_losses: list[torch.Tensor] = []  # of this epoch, on the device: reading one makes the host wait
        self.first_loss: float | None = None

    def configure_optimizers(self) -> Any:
        """Adam (AdamW where decay is asked for) with a cosine schedule over the longest run."""
        how = self.training_params
        params = [p for p in self.parameters() if p.requires_grad]
        fused = params[0].device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(params, lr=how.lr, weight_decay=how.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.max_epochs, eta_min=how.lr * 0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def loss(self, batch: Any, held_out: bool = False) -> torch.Tensor:
        """Return the loss of a batch, of what is learned from or of what is held out; every task has its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        """Note the loss."""
        return self.record(self.loss(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of what is held out."""
        self.log(
            "val_loss", self.loss(batch, True), batch_size=len(batch[0]) if isinstance(batch[0], torch.Tensor) else 1
        )

    def record(self, loss: torch.Tensor) -> torch.Tensor:
        """Note a training step's loss and hand it back."""
        self.step_losses.append(loss.detach())
        return loss

    def epoch_loss(self) -> float:
        """Mean loss of the epoch that ends."""
        losses = torch.stack(self.step_losses).tolist() if self.step_losses else [0.0]
        if self.first_loss is None and self.step_losses:
            self.first_loss = losses[0]
        self.step_losses = []
        return sum(losses) / len(losses)


class _Keeper(Callback):
    """Writes the history, keeps the best weights, stops early, and moves the progress bar."""

    def __init__(self, training: Training, bar: Any, stage: str, report: Path) -> None:
        self.how, self.bar, self.stage, self.report = training, bar, stage, report
        self.best, self.waited = float("inf"), 0
        self.best_state: dict[str, torch.Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for loader in (trainer.train_dataloader, trainer.val_dataloaders):
            dataset: Any = getattr(loader, "dataset", None)
            if hasattr(dataset, "place"):  # it can make its items on the device
                dataset.place(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if hasattr(dataset := trainer.train_dataloader.dataset, "set_epoch"):
            dataset.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        loss = pl_module.epoch_loss()
        value = trainer.callback_metrics.get("val_loss")
        val = float(value) if value is not None else float("nan")
        row: dict[str, Any] = {"stage": self.stage, "epoch": trainer.current_epoch, "loss": loss, "val_loss": val}
        row.update(getattr(pl_module, "extra_metrics", dict)())
        pl_module.history.append(row)
        if self.bar is not None:
            self.bar.set_postfix({"loss": f"{loss:.3f}"})
            self.bar.update(1)
        judged = val if val == val else loss
        if trainer.world_size > 1:  # all processes must judge alike, or some would stop and others wait for them
            judged = float(trainer.strategy.reduce(torch.tensor(judged, device=pl_module.device), reduce_op="mean"))
        if judged < self.best - self.how.min_delta:
            self.best, self.waited = judged, 0
            self.best_state = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.how.patience

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if self.best_state is not None:
            pl_module.load_state_dict(self.best_state)
        if trainer.world_size > 1 and trainer.global_rank == 0:
            self.report.write_text(json.dumps(pl_module.history))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # gloo's threads abort a spawned process that ends while its group is open
        if multiprocessing.parent_process() is not None and torch.distributed.is_initialized():
            trainer.strategy.barrier()
            torch.distributed.destroy_process_group()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bar": None}  # a bar belongs to the process that draws it


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own messages off the user's screen, for the length of one training."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*(does not have many workers|GPU available but not used).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Lightning's exit upon Ctrl-C back into a KeyboardInterrupt, with the handler as it was."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as err:
        if isinstance(err.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from err
        raise
    finally:
        if main and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` CPU threads within the block; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _trainer(how: Training, keeper: Callback, accelerator: str, devices: int | str) -> pl.Trainer:
    most = max(_MOST_DEVICES, 4 * (os.cpu_count() or 1))
    if isinstance(devices, int) and devices > most:
        raise ValueError(f"`devices={devices}` would start as many processes; this machine takes {most} at most.")
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=how.max_epochs,
            callbacks=[keeper],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=5.0,
            inference_mode=False,
            **settings.trainer,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as err:
        raise ValueError(
            f"`accelerator={accelerator!r}` and `devices={devices!r}` cannot be used on this machine"
            f"{f' with settings.trainer={settings.trainer}' if settings.trainer else ''}: {err} "
            "Use accelerator='auto' or 'cpu' and devices=1."
        ) from err


def check_devices(accelerator: str, devices: int | str) -> None:
    """Raise a ValueError where this machine has no such accelerator or not as many devices."""
    with _quiet_lightning():
        _trainer(Training(1, 1), Callback(), accelerator, devices)


def run_training(
    task: Task,
    train: DataLoader[Any],
    val: DataLoader[Any] | None,
    *,
    stage: str = "train",
    desc: str = "training",
    threads: int | None = None,
    **run: Unpack[Run],
) -> list[dict[str, Any]]:
    """Train ``task``, leave it with its best weights on the CPU in eval mode, and return the history.

    ``threads`` limits the CPU threads: on small graphs more of them cost time, a lot of it on a busy machine.
    """
    how, run = task.training_params, completed(run)
    with (
        exclusive(),
        progress(how.max_epochs, desc, run["show_progress"]) as bar,
        _quiet_lightning(),
        _interruptible(),
        _threads(threads),
        seeded(run["random_state"]),
        tempfile.TemporaryDirectory() as folder,
    ):
        keeper = _Keeper(how, bar, stage, Path(folder) / "history.json")
        trainer = _trainer(how, keeper, run["accelerator"], run["devices"])
        trainer.fit(task, train, val)
        if not task.history and keeper.report.exists():  # trained in other processes
            task.history = json.loads(keeper.report.read_text())
    task.to("cpu").eval()
    _check_converged(task, desc)
    return task.history


def _check_converged(task: Task, desc: str) -> None:
    """Raise where training left values that are not finite, or a loss far above that of the untrained network."""
    column = "val_loss" if any(row["val_loss"] == row["val_loss"] for row in task.history) else "loss"
    losses = [row[column] for row in task.history if isfinite(row[column])]
    values = [*task.parameters(), *task.buffers()]
    finite = bool(losses) and all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point())
    if finite and (task.first_loss is None or min(losses) <= EXPLODED * max(task.first_loss, 1.0)):
        return
    first = "an unknown value" if task.first_loss is None else f"{task.first_loss:.3g}"
    last = f"{task.history[-1][column]:.3g}" if task.history else "nothing"
    raise ValueError(
        f"The training diverged ({desc}: the loss went from {first} to {last}). Take a smaller learning rate, e.g. "
        f"`params={{'lr': 0.003}}` (it was {task.training_params.lr:g}), and check that the input has no extreme "
        "values."
    )
