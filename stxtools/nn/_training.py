"""One training loop for every module: early stopping, the best weights kept, on the CPU or wherever Lightning goes."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isfinite, nan
from multiprocessing import active_children
from numbers import Integral
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from stxtools._globals import GLOBAL_LOCK
from stxtools._lazy import importing
from stxtools._progress import Stage, progress
from stxtools._settings import settings

from ._recipe import Run, Training, best_device, completed, seeded

_MOST_DEVICES = 64
_GRACE = 5.0  # seconds in which a process that failed ends
_LARGEST_GRADIENT = 5.0  # norm

Trained = tuple[list[dict[str, float]], dict[str, Tensor] | None]  # history and best weights
Loaders = tuple[DataLoader[Any], DataLoader[Any] | None]

EXPLODED = 10.0  # times the first loss: the best of a training that got somewhere is never as high


class Task(nn.Module):
    """What is trained: networks and their loss."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training_params = training
        self.first_loss: float | None = None

    def setup(self, device: torch.device) -> None:
        """Move what is no module to the device."""

    def loss(self, batch: Any, held_out: bool = False) -> Tensor:
        """Return the loss of a batch, of what is learned from or of what is held out; every task has its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def training_step(self, batch: Any) -> Tensor | None:
        """Return the loss to learn from, or None where the batch teaches nothing."""
        return self.loss(batch)

    def forward(self, batch: Any, held_out: bool = False) -> Tensor | None:
        """Return the loss of a batch; called through what Lightning wraps around the task."""
        return self.loss(batch, held_out=True) if held_out else self.training_step(batch)

    def after_step(self) -> None:
        """Look at what a step did."""

    def extra_metrics(self) -> dict[str, float]:
        """Return what else to note of the epoch that ends."""
        return {}


class _AdamW(torch.optim.AdamW):
    """AdamW without the decorators that import PyTorch's compiler, which takes 0.6 s."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _Here:
    """What the loop asks of Lightning's Fabric, on one device in this process; importing Lightning takes seconds."""

    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def launch(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def setup_optimizers(self, optimizer: Any) -> Any:
        return optimizer

    def setup_dataloaders(self, loader: DataLoader[Any]) -> Any:
        return loader if self.device.type == "cpu" else _Moved(loader, self.device)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self, module: nn.Module, optimizer: Any, *, max_norm: float, error_if_nonfinite: bool) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


class _Moved:
    """A loader whose tensors go to a device; batches that are no lists are made there."""

    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield [self._moved(part) for part in batch] if isinstance(batch, list) else batch

    def _moved(self, part: Any) -> Any:
        return part.to(self.device, non_blocking=True) if isinstance(part, Tensor) else part


def _place(accelerator: str, devices: int | str) -> Any:
    """Where to train: one device in this process, or what Lightning's Fabric makes of the arguments."""
    devices = int(devices) if isinstance(devices, Integral) else devices
    text = isinstance(accelerator, str)  # all else is refused
    here = text and accelerator in ("auto", "cpu", "gpu", "cuda", "mps") and devices == 1 and not settings.trainer
    if here or not text:
        return _Here(best_device(accelerator))
    with importing(), _quiet_lightning():
        from lightning.fabric import Fabric
        from lightning.fabric.utilities.exceptions import MisconfigurationException

    most = max(_MOST_DEVICES, 4 * (os.cpu_count() or 1))
    if isinstance(devices, int) and devices > most:
        raise ValueError(f"`devices={devices}` would start as many processes; this machine takes {most} at most.")
    try:
        return Fabric(accelerator=accelerator, devices=devices, **settings.trainer)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as err:
        raise ValueError(
            f"`accelerator={accelerator!r}` and `devices={devices!r}` cannot be used on this machine"
            f"{f' with settings.trainer={settings.trainer}' if settings.trainer else ''}: {err} "
            "Use accelerator='auto' or 'cpu' and devices=1."
        ) from err


def check_devices(accelerator: str, devices: int | str) -> None:
    """Raise a ValueError where this machine has no such accelerator or not as many devices."""
    with _quiet_lightning():
        _place(accelerator, devices)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own messages off the user's screen for a while, and its loggers at their levels."""
    names = ("lightning.fabric", "lightning", "lightning.pytorch", "torchmetrics")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    logging.getLogger(names[0]).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


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


def run_training(
    task: Task, train: DataLoader[Any], val: DataLoader[Any] | None, *, stage: str = "train", desc: str = "training",
    threads: int | None = None, **run: Unpack[Run],
) -> list[dict[str, Any]]:  # fmt: skip
    """Train ``task``, leave it with its best weights on the CPU in eval mode, and return the history.

    ``threads`` limits the CPU threads: on small graphs more of them cost time, a lot of it on a busy machine.
    """
    run = completed(run)
    with (
        GLOBAL_LOCK,
        progress(task.training_params.max_epochs, desc, run["show_progress"]) as bar,
        _quiet_lightning(),
        _threads(threads),
        tempfile.TemporaryDirectory() as folder,
    ):
        place, file = _place(run["accelerator"], run["devices"]), Path(folder, "trained")
        with _no_process_left():
            found = place.launch(_train_here, task, (train, val), bar, file, run["random_state"], os.getpid())
        history, weights = found or _trained_elsewhere(task, file)
    if weights is not None:
        task.load_state_dict(weights)
    task.to("cpu").eval()
    _check_converged(task, history, desc)
    return [{"stage": stage, **row} for row in history]


@contextmanager
def _no_process_left() -> Iterator[None]:
    """End the processes of a training that is interrupted, as torch does after errors; forget the port of all."""
    before, port = {process.pid for process in active_children()}, os.environ.get("MASTER_PORT")
    try:
        yield
    except BaseException:
        for process in active_children():
            if process.pid not in before:
                process.kill()
                process.join()
        raise
    finally:
        if port is None:
            os.environ.pop("MASTER_PORT", None)


def _train_here(
    place: Any, task: Task, loaders: Loaders, bar: Stage, file: Path, seed: int, caller: int
) -> Trained | None:
    """Train in this process, one of several perhaps; return the history and the best weights.

    A process that was started for the training writes them into ``file``: tensors that it returned would end with it.
    """
    try:
        with seeded(seed, place.device):
            history, weights = _train(place, task, *loaders, bar)
        if os.getpid() == caller:
            return history, weights
        if place.is_global_zero:
            notes = {"history": json.dumps(history), "first_loss": json.dumps(task.first_loss)}
            save_file({k: v.contiguous() for k, v in (weights or {}).items()}, file, notes)
        place.barrier()
    except BaseException:
        if os.getpid() != caller:
            _let_the_first_fail_first(file.with_suffix(".failed"))
        raise
    finally:  # gloo aborts or blocks a process that ends while its group lives
        if os.getpid() != caller and torch.distributed.is_initialized():
            gc.collect()  # DDP holds the group, too
            torch.distributed.destroy_process_group()
    return None


def _let_the_first_fail_first(mark: Path) -> None:
    """Wait if another process failed before: its error is the cause, and torch reports that of the first to end."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(_GRACE)


def _train(place: Any, task: Task, train: DataLoader[Any], val: DataLoader[Any] | None, bar: Stage) -> Trained:
    how, history, best, waited, weights = task.training_params, [], inf, 0, None
    net = place.setup_module(task)
    task.setup(place.device)
    parameters = [p for p in task.parameters() if p.requires_grad]
    fused = place.device.type in ("cpu", "cuda")
    adam = _AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay, fused=fused)
    schedule = CosineAnnealingLR(adam, how.max_epochs, eta_min=how.lr * 0.05)
    optimizer = place.setup_optimizers(adam)
    learned, judged_on = _loader_at(place, train), None if val is None else _loader_at(place, val)
    for epoch in range(how.max_epochs):
        if hasattr(train.dataset, "set_epoch"):
            train.dataset.set_epoch(epoch)
        losses = []
        for batch in learned:
            loss = net(batch)
            if loss is not None:
                losses.append(loss.detach())  # on the device: reading one makes the host wait
                task.zero_grad()
                place.backward(loss)
                place.clip_gradients(net, optimizer, max_norm=_LARGEST_GRADIENT, error_if_nonfinite=False)
                optimizer.step()
            task.after_step()
        held_out = nan if judged_on is None else _held_out_loss(net, judged_on)
        schedule.step()
        values = torch.stack(losses).tolist() if losses else [0.0]
        if task.first_loss is None and losses:
            task.first_loss = values[0]
        loss = sum(values) / len(values)
        history.append({"epoch": epoch, "loss": loss, "val_loss": held_out, **task.extra_metrics()})
        bar.set_postfix({"loss": f"{loss:.3f}"})
        bar.update(1)
        judged = held_out if held_out == held_out else loss
        if place.world_size > 1:  # all processes must judge alike, or some would stop and others wait for them
            judged = float(place.all_reduce(torch.tensor(judged, device=place.device), reduce_op="mean"))
        if judged < best - how.min_delta:
            best, waited = judged, 0
            weights = {k: v.detach().clone() for k, v in task.state_dict().items()}
        elif (waited := waited + 1) >= how.patience:
            break
    return history, weights


def _trained_elsewhere(task: Task, file: Path) -> Trained:
    """Read what a process that was started for the training wrote."""
    with safe_open(file, "pt") as trained:
        notes = {name: json.loads(text) for name, text in trained.metadata().items()}
        weights = {k: trained.get_tensor(k) for k in trained.keys()}  # noqa: SIM118 - it is no mapping
    task.first_loss = notes["first_loss"]
    return notes["history"], weights or None


def _loader_at(place: Any, loader: DataLoader[Any]) -> Any:
    """Let a dataset make its items on the device where it can; else they are moved there."""
    if hasattr(loader.dataset, "place"):
        loader.dataset.place(place.device)
    return place.setup_dataloaders(loader)


def _held_out_loss(net: nn.Module, loader: Any) -> float:
    """Mean loss of what is held out, with each part of the network in the mode it had afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    total, count = torch.zeros((), device=next(net.parameters()).device), 0
    with torch.no_grad():
        for batch in loader:
            n = len(batch[0]) if isinstance(batch[0], Tensor) else 1
            total, count = total + net(batch, held_out=True) * n, count + n
    for module, mode in modes:
        module.training = mode
    return float(total / count)


def _check_converged(task: Task, history: list[dict[str, float]], desc: str) -> None:
    """Raise where training left values that are not finite, or a loss far above that of the untrained network."""
    column = "val_loss" if any(row["val_loss"] == row["val_loss"] for row in history) else "loss"
    losses = [row[column] for row in history if isfinite(row[column])]
    values = [*task.parameters(), *task.buffers()]
    finite = bool(losses) and all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point())
    if finite and (task.first_loss is None or min(losses) <= EXPLODED * max(task.first_loss, 1.0)):
        return
    first = "an unknown value" if task.first_loss is None else f"{task.first_loss:.3g}"
    last = f"{history[-1][column]:.3g}" if history else "nothing"
    raise ValueError(
        f"The training diverged ({desc}: the loss went from {first} to {last}). Take a smaller learning rate, e.g. "
        f"`params={{'lr': 0.003}}` (it was {task.training_params.lr:g}), and check that the input has no extreme "
        "values."
    )
