"""The joint model: U-Net, region graph, GNN, readout and heads behind fit, predict, save, load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from stxtools.nn._gnn import RegionGNN
from stxtools.nn._tissue import GraphTensors, TissueModule, TissueTask
from stxtools.nn._training import Training, run_training, seeded
from stxtools.nn._unet import UNet

from ._params import TissueNetParams, as_dict, resolve
from ._projection import GeneProjection
from ._section import Section
from ._segmenter import best_device
from ._storage import load_model, save_model

BIOMARKER, CLASSES = "biomarker", "classification"
MANY = 5000  # regions from which on several CPU threads pay


@dataclass
class RegionSection:
    """A section with its regions.

    Attributes
    ----------
    section
        Observations, raster and features.
    region
        Region of each observation, 0 .. R - 1 within the section; -1 for none.
    nodes
        Features of the regions, (R, F).
    adjacency
        Which regions touch, (R, R) sparse and symmetric.
    labels
        Task -> class codes of the observations, -1 where unlabelled.
    """

    section: Section
    region: NDArray[np.int64]
    nodes: NDArray[np.float32]
    adjacency: sparse.csr_matrix
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TissuePrediction:
    """Result for one section.

    Attributes
    ----------
    states
        Embeddings of the regions, (R, d).
    z
        Embedding of the section, (d,).
    proba
        Task -> class probabilities of the regions, (R, K).
    attention
        Row: the region that receives, column: the region it attends to; rows sum to 1, (R, R) sparse.
    """

    states: NDArray[np.float32]
    z: NDArray[np.float32]
    proba: dict[str, NDArray[np.float32]]
    attention: sparse.csr_matrix


class TissueNet:
    """Graph network on tissue regions, with or without labels.

    Fitted without labels it embeds regions by reconstructing hidden ones from their surroundings. Fitted
    with labels for one or two tasks it trains U-Net, GNN and heads together.

    Parameters
    ----------
    params
        Architecture and training; an instance, a mapping of fields, or None for the defaults.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.models.TissueNet.load("net.stx").classes["biomarker"]
    ['healthy', 'diseased']
    """

    def __init__(self, params: TissueNetParams | Mapping[str, Any] | None = None) -> None:
        self.params = resolve(params, TissueNetParams)
        self.classes: dict[str, list[str]] = {}
        self.history: list[dict[str, Any]] = []
        self.projection: GeneProjection | None = None
        self.use_rep: str | None = None
        self.module: TissueModule | None = None
        self.scaling: dict[str, NDArray[np.float32]] = {}

    @property
    def n_features(self) -> int:
        """Length of the feature vectors of the observations."""
        return len(self.scaling["centre"])

    @property
    def task_weights(self) -> dict[str, float]:
        """Weight of each task's loss."""
        weights = {BIOMARKER: self.params.alpha, CLASSES: self.params.beta}
        return {task: weights[task] for task in self.classes}

    def params_dict(self) -> dict[str, Any]:
        """Parameters as plain values."""
        return as_dict(self.params)

    def fit(
        self,
        sections: Sequence[RegionSection],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        random_state: int = 0,
        accelerator: str = "auto",
        devices: int | str = 1,
        show_progress: bool | None = None,
    ) -> TissueNet:
        """Train on ``sections``.

        Parameters
        ----------
        sections
            Sections with regions; with ``labels`` for every task named in ``classes``.
        classes
            Task (``"biomarker"``, ``"classification"``) -> class names; None trains without labels.
        random_state
            Seed.
        accelerator, devices
            As in Lightning.
        show_progress
            Whether a bar is shown.
        """
        self.classes = {task: list(names) for task, names in (classes or {}).items()}
        self.history = []
        features = np.concatenate([s.section.features for s in sections])
        nodes = np.concatenate([s.nodes for s in sections])
        self.scaling = {
            "centre": features.mean(axis=0), "scale": features.std(axis=0) + 1e-6,
            "node_centre": nodes.mean(axis=0), "node_scale": nodes.std(axis=0) + 1e-6,
        }  # fmt: skip
        rng = np.random.default_rng(random_state)
        graphs = [self._tensors(s, rng) for s in sections]
        with seeded(random_state):
            self.module = self._new_module()
        p = self.params
        task = TissueTask(
            self.module,
            graphs,
            Training(p.epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay),
            self.task_weights,
            p.hide,
        )
        train, val = task.loaders(random_state)
        self.history = run_training(
            task, train, val, seed=random_state, accelerator=accelerator, devices=devices,
            stage="multitask" if self.classes else "embed", desc="GNN", show_progress=show_progress,
            threads=1 if len(nodes) < MANY and self.module.unet is None else None,
        )  # fmt: skip
        return self

    def _new_module(self) -> TissueModule:
        p = self.params
        n_nodes = len(self.scaling["node_centre"])
        unet = None
        if p.unet and self.classes:
            unet = UNet(
                self.n_features, width=p.unet_width, depth=p.unet_depth, kernel_size=p.kernel_size, dropout=p.dropout
            )
        gnn = RegionGNN(
            n_nodes + (p.unet_width if unet is not None else 0),
            hidden=p.hidden,
            out_channels=p.out_channels,
            layers=p.layers,
            conv=p.conv,
            heads=p.heads,
            dropout=p.dropout,
        )
        return TissueModule(n_nodes, gnn, p.out_channels, unet, {t: len(c) for t, c in self.classes.items()})

    def _tensors(self, s: RegionSection, rng: np.random.Generator | None) -> GraphTensors:
        nodes = (s.nodes - self.scaling["node_centre"]) / self.scaling["node_scale"]
        coo = sparse.coo_matrix(s.adjacency)
        out = GraphTensors(torch.from_numpy(nodes), torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)))
        if self.params.unet and self.classes:
            section, known = s.section, s.region >= 0
            z = (section.features - self.scaling["centre"]) / self.scaling["scale"]
            out.x, out.occupied = torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied())
            out.pixel = torch.from_numpy(section.flat_pixels[known])
            out.region = torch.from_numpy(s.region[known])
        if rng is not None:
            for task, names in self.classes.items():
                share, weight = label_shares(s.region, s.labels[task], len(s.nodes), len(names))
                held = _held_out(share, weight, rng)
                out.targets[task] = torch.from_numpy(share)
                out.weight[task], out.val_weight[task] = (
                    torch.from_numpy(weight * ~held),
                    torch.from_numpy(weight * held),
                )
        return out

    def predict(self, sections: Sequence[RegionSection], *, accelerator: str = "auto") -> list[TissuePrediction]:
        """Embed ``sections`` and predict the classes of their regions."""
        if self.module is None:
            raise ValueError("This TissueNet is not trained; call `fit` or load a saved one.")
        device = best_device(accelerator)
        module = self.module.to(device).eval()
        found = []
        with torch.no_grad():
            for s in sections:
                out = module(self._tensors(s, None).to(device))
                n = len(s.nodes)
                source, target = out.edges.cpu().numpy()
                attention = sparse.csr_matrix((out.attention.cpu().numpy(), (target, source)), shape=(n, n))
                proba = {task: logits.softmax(dim=1).cpu().numpy() for task, logits in out.logits.items()}
                found.append(TissuePrediction(out.states.cpu().numpy(), out.z.cpu().numpy(), proba, attention))
        module.to("cpu")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights (safetensors) and description (JSON) to one file."""
        if self.module is None:
            raise ValueError("This TissueNet is not trained; there is nothing to save.")
        arrays = {f"module.{k}": v.detach().cpu().numpy() for k, v in self.module.state_dict().items()}
        arrays |= self.scaling
        config: dict[str, Any] = {
            "params": as_dict(self.params), "classes": self.classes, "use_rep": self.use_rep
        }  # fmt: skip
        if self.projection is not None:
            described, projection = self.projection.to_file()
            config, arrays = config | described, arrays | projection
        save_model(path, type(self).__name__, config, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TissueNet:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is not a saved TissueNet.
        """
        config, arrays = load_model(path, cls.__name__)
        self = cls(config["params"])
        self.classes, self.use_rep = {t: list(c) for t, c in config["classes"].items()}, config["use_rep"]
        self.scaling = {k: arrays[k] for k in ("centre", "scale", "node_centre", "node_scale")}
        self.projection = GeneProjection.from_file(config, arrays)
        self.module = self._new_module()
        prefix = "module."
        weights = {
            k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)
        }
        self.module.load_state_dict(weights)
        self.module.eval()
        return self


def label_shares(
    region: NDArray[np.int64], codes: NDArray[np.int64], n_regions: int, n_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each class among the labelled observations of each region, and the share of them that is labelled."""
    known = (region >= 0) & (codes >= 0)
    count = np.zeros((n_regions, n_classes))
    np.add.at(count, (region[known], codes[known]), 1.0)
    labelled = count.sum(axis=1)
    size = np.bincount(region[region >= 0], minlength=n_regions)
    share = np.divide(count, labelled[:, None], out=np.zeros_like(count), where=labelled[:, None] > 0)
    return share.astype(np.float32), (labelled / np.maximum(size, 1)).astype(np.float32)


def _held_out(share: NDArray[np.float32], weight: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """One labelled region in six, but none of a class with fewer than six: they are needed to learn from."""
    held = np.zeros(len(weight), dtype=bool)
    top = share.argmax(axis=1)
    for c in range(share.shape[1]):
        rows = np.flatnonzero((weight > 0) & (top == c))
        held[rng.permutation(rows)[: len(rows) // 6]] = True
    return held
