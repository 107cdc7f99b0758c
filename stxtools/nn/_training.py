"""The training loop of all networks, with early stopping, on one device or those of Lightning's Fabric."""

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
from contextlib import ExitStack, contextmanager
from math import inf, isfinite, isnan, nan
from multiprocessing import active_children
from numbers import Integral
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from stxtools._globals import GLOBAL_LOCK
from stxtools._lazy import importing
from stxtools._progress import Stage, progress
from stxtools._settings import settings

from ._options import RunOptions, Training, best_device, seeded, with_defaults

_MOST_DEVICES = 64
_GRACE = 5.0  # seconds in which a process that failed ends
_MAX_GRADIENT_NORM = 5.0
_EXPLODED = 10.0  # times the first loss: a training that improved at all has a lower best loss

TrainingResult = tuple[list[dict[str, float]], dict[str, Tensor] | None]  # history and best weights
Loaders = tuple[DataLoader[Any], DataLoader[Any] | None]  # training and validation


class Task(nn.Module):
    """Networks to train, and their loss."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training_params = training
        self.first_loss: float | None = None

    def setup(self, device: torch.device) -> None:
        """Move data that is not part of a module to the device."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a validation batch, and by default of a training batch; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def training_step(self, batch: Any) -> Tensor | None:
        """Return the loss of a training batch, or None where it has no labels."""
        return self.loss(batch)

    def forward(self, batch: Any, held_out: bool = False) -> Tensor | None:
        """Return the loss of a batch; Lightning wraps this method."""
        return self.loss(batch) if held_out else self.training_step(batch)

    def after_step(self) -> None:
        """Run after every training step."""

    def extra_metrics(self) -> dict[str, float]:
        """Return further columns of the history for the epoch that ends."""
        return {}


class _AdamW(torch.optim.AdamW):
    """AdamW without the decorators that import PyTorch's compiler, which takes 0.6 s."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _SingleDevice:
    """Stand-in for Lightning's Fabric, which takes seconds to import, on one device in this process."""

    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def launch(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def setup_optimizers(self, optimizer: Any) -> Any:
        return optimizer

    def setup_dataloaders(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        return loader

    def to_device(self, batch: Any) -> Any:
        return tree_map(lambda v: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v, batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self, module: nn.Module, optimizer: Any, *, max_norm: float, error_if_nonfinite: bool) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages within the block, and keep its loggers at their levels."""
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


@_quiet_lightning()
def make_fabric(accelerator: str, devices: int | str) -> Any:
    """Return Lightning's Fabric for these devices, or its stand-in; a ValueError where this machine lacks them."""
    devices = int(devices) if isinstance(devices, Integral) else devices
    if not isinstance(accelerator, str) or (
        accelerator in ("auto", "cpu", "gpu", "cuda", "mps") and devices == 1 and not settings.trainer
    ):
        return _SingleDevice(best_device(accelerator))
    if str(precision := settings.trainer.get("precision")) in {"64", "64-true", "bf16-true", "16-true"}:
        raise ValueError(f"settings.trainer has precision={precision!r}: weights are float32; use 'bf16-mixed'.")
    with importing():
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


def run_training(
    task: Task, train: DataLoader[Any], val: DataLoader[Any] | None, *, stage: str = "train", desc: str = "training",
    threads: int | None = None, **run: Unpack[RunOptions],
) -> list[dict[str, Any]]:  # fmt: skip
    """Train ``task``, leave it with its best weights on the CPU in eval mode, and return the history.

    ``threads`` limits the CPU threads: on small graphs more of them cost time, a lot of it on a busy machine.
    """
    run = with_defaults(run)
    with (
        GLOBAL_LOCK,
        progress(task.training_params.max_epochs, desc, run["show_progress"]) as bar,
        _quiet_lightning(),
        ExitStack() as restored,
        tempfile.TemporaryDirectory() as folder,
    ):
        if threads is not None:
            restored.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        fabric, file = make_fabric(run["accelerator"], run["devices"]), Path(folder, "trained")
        with _terminate_processes():
            result = fabric.launch(_fit, task, (train, val), bar, file, run["random_state"], os.getpid())
        history, weights = result or _read_result(task, file)
    if weights is not None:
        task.load_state_dict(weights)
    task.to("cpu").eval()
    _check_converged(task, history, desc)
    return [{"stage": stage, **row} for row in history]


@contextmanager
def _terminate_processes() -> Iterator[None]:
    """Kill the child processes of a training that is interrupted, as torch does after errors; reset the port."""
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


def _fit(
    fabric: Any, task: Task, loaders: Loaders, bar: Stage, file: Path, seed: int, main_pid: int
) -> TrainingResult | None:
    """Train in this process, possibly one of several, and return the history and the best weights.

    A child process writes them into ``file`` instead: tensors that it returned would be freed when it ends.
    """
    if os.getpid() == main_pid:
        with seeded(seed, fabric.device):
            return _training_loop(fabric, task, *loaders, bar)
    try:
        with seeded(seed, fabric.device):
            history, weights = _training_loop(fabric, task, *loaders, bar)
        if fabric.is_global_zero:
            metadata = {"history": json.dumps(history), "first_loss": json.dumps(task.first_loss)}
            save_file({k: v.contiguous() for k, v in (weights or {}).items()}, file, metadata)
        fabric.barrier()
    except BaseException:
        try:  # torch reports the first process to end: those that fail because of another one wait
            file.with_suffix(".failed").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(_GRACE)
        raise
    finally:  # gloo aborts or blocks a process that ends while its group lives
        if torch.distributed.is_initialized():
            gc.collect()  # DDP holds the group, too
            torch.distributed.destroy_process_group()
    return None


def _training_loop(
    fabric: Any, task: Task, train: DataLoader[Any], val: DataLoader[Any] | None, bar: Stage
) -> TrainingResult:
    p, history, best, epochs_since_best, weights = task.training_params, [], inf, 0, None
    net = fabric.setup_module(task)
    task.setup(fabric.device)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    fused = fabric.device.type in ("cpu", "cuda")
    adam = _AdamW(parameters, lr=p.lr, weight_decay=p.weight_decay, fused=fused)
    schedule = CosineAnnealingLR(adam, p.max_epochs, eta_min=p.lr * 0.05)
    optimizer = fabric.setup_optimizers(adam)
    train_batches = _setup_loader(fabric, train)
    val_batches = None if val is None else _setup_loader(fabric, val)
    for epoch in range(p.max_epochs):
        if hasattr(train.dataset, "epoch"):
            train.dataset.epoch = epoch
        losses = []
        for batch in train_batches:
            loss = net(fabric.to_device(batch))
            if loss is not None:
                losses.append(loss.detach())  # on the device: reading one makes the host wait
                task.zero_grad()
                fabric.backward(loss)
                fabric.clip_gradients(net, optimizer, max_norm=_MAX_GRADIENT_NORM, error_if_nonfinite=False)
                optimizer.step()
            task.after_step()
        val_loss = nan if val_batches is None else _validation_loss(fabric, net, val_batches)
        schedule.step()
        values = torch.stack(losses).tolist() if losses else [0.0]
        if task.first_loss is None and losses:
            task.first_loss = values[0]
        train_loss = sum(values) / len(values)
        history.append({"epoch": epoch, "loss": train_loss, "val_loss": val_loss, **task.extra_metrics()})
        bar.set_postfix({"loss": f"{train_loss:.3f}"})
        bar.update(1)
        monitored = train_loss if val_batches is None else val_loss
        if fabric.world_size > 1:  # all processes must stop in the same epoch, or some would wait for the others
            monitored = float(fabric.all_reduce(torch.tensor(monitored, device=fabric.device), reduce_op="mean"))
        if monitored < best - p.min_delta:
            best, epochs_since_best = monitored, 0
            weights = {k: v.detach().clone() for k, v in task.state_dict().items()}
        elif (epochs_since_best := epochs_since_best + 1) >= p.patience:
            break
    return history, weights


def _setup_loader(fabric: Any, loader: DataLoader[Any]) -> Any:
    """Set up a loader, and let its dataset make items on the device if it can."""
    if hasattr(loader.dataset, "set_device"):
        loader.dataset.set_device(fabric.device)
    return fabric.setup_dataloaders(loader)


def _validation_loss(fabric: Any, net: nn.Module, batches: Any) -> float:
    """Mean validation loss; every module is in its previous mode (training or evaluation) afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    total, count = torch.zeros((), device=fabric.device), 0
    with torch.no_grad():
        for batch in batches:
            first = next(iter(batch.values() if isinstance(batch, dict) else batch))
            n = len(first) if isinstance(first, Tensor) else 1  # of a graph, batches hold the index
            total, count = total + net(fabric.to_device(batch), held_out=True) * n, count + n
    for module, mode in modes:
        module.training = mode
    return float(total / count)


def _read_result(task: Task, file: Path) -> TrainingResult:
    """Read what a child process wrote."""
    with safe_open(file, "pt") as trained:
        metadata = {name: json.loads(text) for name, text in trained.metadata().items()}
        weights = {k: trained.get_tensor(k) for k in trained.keys()}  # noqa: SIM118 - it is not a mapping
    task.first_loss = metadata["first_loss"]
    return metadata["history"], weights or None


def _check_converged(task: Task, history: list[dict[str, float]], desc: str) -> None:
    """Raise a ValueError if a weight is not finite, or the best loss far above that of the untrained network."""
    column = "loss" if all(isnan(row["val_loss"]) for row in history) else "val_loss"
    losses = [row[column] for row in history if isfinite(row[column])]
    values = [*task.parameters(), *task.buffers()]
    finite = bool(losses) and all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point())
    if finite and (task.first_loss is None or min(losses) <= _EXPLODED * max(task.first_loss, 1.0)):
        return
    first = "an unknown value" if task.first_loss is None else f"{task.first_loss:.3g}"
    last = f"{history[-1][column]:.3g}" if history else "nothing"
    raise ValueError(
        f"The training diverged ({desc}: the loss went from {first} to {last}). Take a smaller learning rate, e.g. "
        f"`params={{'lr': 0.003}}` (it was {task.training_params.lr:g}), and check that the input has no extreme "
        "values."
    )
