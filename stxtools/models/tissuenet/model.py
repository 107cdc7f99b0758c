"""The joint model of U-Net, region graph, GNN, readout and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from scipy import sparse
from scipy.special import softmax

from stxtools._progress import stage
from stxtools._types import Floats, Floats32
from stxtools.models._base import BaseModel
from stxtools.models._params import TissueNetParams
from stxtools.models._storage import ModelFile, check_shapes, check_type
from stxtools.models.ensemble.stacking import Ensemble, Stack, Weights
from stxtools.nn._options import RunOptions, Training, best_device, seeded, with_defaults
from stxtools.nn._tissue import GraphTensors, RegionGNN, TissueModule
from stxtools.nn._tissue_task import EmbeddingTask, TissueTask, UNetPretraining, convergence
from stxtools.nn._training import run_training
from stxtools.nn._unet import UNet
from stxtools.nn._weighting import task_weighting

from .features import BIOMARKER, CLASSES, EXPRESSION, Featurizer, TrainingTargets
from .inputs import RegionSection, region_means

_MANY = 5000  # regions of a step from which several CPU threads pay
_EMBED_DROPOUT = 0.1  # without labels
_NETWORK_ALONE = Ensemble(Stack(Weights(network=1.0)))


@dataclass(frozen=True)
class TissuePrediction:
    """Result for one section."""

    states: Floats32  # embeddings of the regions, (R, d)
    z: Floats32  # embedding of the section, (d,)
    attention: sparse.csr_matrix  # of each region (row) to its neighbours (columns), (R, R)
    # task -> class probabilities, or log expression, of regions (R, K) and observations (n, K); NaN outside any region
    regions: dict[str, Floats32]
    observations: dict[str, Floats32]
    weights: dict[str, Weights]  # task -> those of the ensemble's members


class TissueNet(BaseModel[TissueNetParams, TissueModule]):
    """Graph network on tissue regions, with or without labels.

    Fitted without labels it embeds regions. Fitted with labels for one or two tasks, or with genes to predict, it
    trains U-Net, GNN and heads together.

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

    params_type = TissueNetParams
    used_by = "st.tl.multitask(adata, model=...)"
    saved = BaseModel.saved | {
        "classes": "dict[str, list[str]]", "expression": "list[str]", "genes": "list[str] | None",
        "target_sum": "float | None", "task_weights": "dict[str, float]", "ensembles": "dict[str, Ensemble]",
    }  # fmt: skip

    def __init__(self, params: TissueNetParams | Mapping[str, Any] | None = None) -> None:
        super().__init__(params)
        self.classes: dict[str, list[str]] = {}
        self.expression: list[str] = []
        self.featurizer = Featurizer(self.params)
        self.ensembles: dict[str, Ensemble] = {}
        self.convergence: dict[str, Any] = {}
        self.task_weights: dict[str, float] = {}

    @property
    def required_genes(self) -> list[str]:
        """Genes of the components, else those that the network reads beside a stored representation."""
        return super().required_genes or self.genes or []

    @property
    def read_genes(self) -> list[str]:
        """Genes of the gene classifiers, of the network and of the components."""
        lists = [e.unlabelled.genes.moments.genes for e in self.ensembles.values() if e.unlabelled.genes is not None]
        lists += [self.genes or [], self.projection.genes if self.projection is not None else []]
        return list(dict.fromkeys(gene for genes in lists for gene in genes))

    @property
    def hidden_genes(self) -> list[str]:
        """Genes to predict, which did not count towards the depth in training."""
        return self.expression if self.read_genes else []

    @property
    def tasks(self) -> dict[str, int]:
        """Task -> number of classes or genes."""
        sizes = {task: len(names) for task, names in self.classes.items()}
        return sizes | ({EXPRESSION: len(self.expression)} if self.expression else {})

    def fit(
        self, sections: Sequence[RegionSection], *, classes: Mapping[str, Sequence[str]] | None = None,
        expression: Sequence[str] | None = None, inductive: bool = True, **run: Unpack[RunOptions],
    ) -> TissueNet:  # fmt: skip
        """Train on ``sections``, without labels if neither ``classes`` nor ``expression`` are given.

        Parameters
        ----------
        sections
            Sections with regions; with ``labels`` for every task named in ``classes``.
        classes
            Task (``"biomarker"``, ``"classification"``) -> class names.
        expression
            Names of the genes that the sections' ``expression`` holds, to be predicted.
        inductive
            Whether other sections will be predicted, too; if not, only the members that ``sections`` need are fitted.
        **run
            ``random_state``, ``accelerator``, ``devices`` and ``show_progress``, as in :func:`stxtools.tl.multitask`.
        """
        self.classes = {task: list(names) for task, names in (classes or {}).items()}
        self.expression = list(expression or [])
        named = self.params.ensemble
        if self.expression and named != "auto" and not {"network", "linear"} & set(named):
            raise ValueError("Only 'network' and 'linear' predict genes; name one of them in `ensemble`.")
        if named != "auto" and "genes" in named and any(s.by_name is None for s in sections):
            raise ValueError("`ensemble` names 'genes', but there is no expression, or `params` turn it off; drop it.")
        self.history, self.net, self.ensembles, self.convergence, run = [], None, {}, {}, with_defaults(run)
        factors = self._factors()
        rng = np.random.default_rng(run["random_state"])
        self.featurizer = Featurizer(self.params)
        features = self.featurizer.fit(sections, rng, labelled=bool(self.tasks))
        self.scaling = self.featurizer.scaling
        with seeded(run["random_state"]):
            self.net = self._new_net()
        try:
            if self.tasks:
                targets = TrainingTargets(self.featurizer, sections, features, self.tasks, rng)
                self._fit_tasks(targets, factors, run, inductive=inductive)
            else:
                self._fit_embedding(sections, run)
        except BaseException:
            self.net = None  # it is not trained
            raise
        return self

    def _factors(self) -> dict[str, float]:
        """Task -> factor of its loss, for the tasks that are trained."""
        p = self.params
        weights = {BIOMARKER: p.alpha, CLASSES: p.beta, EXPRESSION: p.gamma}
        factors = {task: weights[task] for task in self.tasks if weights[task] > 0}
        if self.tasks and not factors:
            raise ValueError(
                f"The factors of {' and '.join(self.tasks)} are 0: nothing would be learned; set one above 0."
            )
        return factors

    def _fit_embedding(self, sections: Sequence[RegionSection], run: RunOptions) -> None:
        p, module = self.params, self.fitted_net()
        graphs = [self.featurizer.tensors(s) for s in sections]
        task = EmbeddingTask(module, graphs, self._training(p.epochs, p.patience), p.hide)
        threads = 1 if max(len(g.nodes) for g in task.graphs) < _MANY else None
        loaders = task.loaders(run["random_state"])
        self.history += run_training(task, *loaders, stage="embed", desc="training the network", threads=threads, **run)

    def _fit_tasks(
        self, training: TrainingTargets, factors: dict[str, float], run: RunOptions, *, inductive: bool
    ) -> None:
        from .ensemble_fit import EnsembleFitter

        p, module, graphs = self.params, self.fitted_net(), training.graphs
        if module.unet is not None and p.pretrain != "none":
            with seeded(run["random_state"] + 1):
                pretraining = UNetPretraining(
                    module.unet, self.n_features, graphs, self._training(p.pretrain_epochs, p.pretrain_epochs)
                )
            loaders = pretraining.loaders(run["random_state"] + 1)
            self.history += run_training(
                pretraining, *loaders, stage=f"pretrain_{p.pretrain}", desc="pretraining", **run
            )
        weighting = task_weighting(p.weighting, factors, [task for task in factors if task == EXPRESSION])
        task = TissueTask(module, graphs, self._training(p.epochs, p.patience), weighting, p.region_loss)
        uninformed, loaders = task.uninformed_loss(), task.loaders(run["random_state"])
        history = run_training(task, *loaders, stage="multitask", desc="training the network", **run)
        self.convergence = convergence(history, uninformed, validated=bool(task.val_indices))
        self.history += history
        self.task_weights = {name: float(history[-1].get(f"weight_{name}", 0.0)) for name in self.tasks}
        stage("weighing the ensemble")
        converged = self.convergence["converged"]
        fitter = EnsembleFitter(training, p.ensemble, converged=converged, inductive=inductive)
        self.ensembles = {name: fitter.fit(name) for name in factors}

    def _training(self, epochs: int, patience: int) -> Training:
        return Training(epochs, patience, lr=self.params.lr, weight_decay=self.params.weight_decay)

    def _new_net(self) -> TissueModule:
        p, labelled = self.params, bool(self.tasks)
        n_nodes = len(self.featurizer.scales["node_centre"])
        unet = None
        if p.unet and labelled:
            unet = UNet(self.n_features, width=p.unet_width, depth=p.unet_depth, kernel_size=p.kernel_size, dropout=0.1)
        n_inputs = self.featurizer.n_inputs if labelled else 0
        gnn = RegionGNN(
            n_nodes + (p.unet_width if unet is not None else 0) + (p.spot_width if n_inputs else 0),
            hidden=p.hidden, out_channels=p.out_channels, layers=p.layers, conv=p.conv, heads=p.heads,
            dropout=p.dropout if labelled else _EMBED_DROPOUT,
        )  # fmt: skip
        return TissueModule(
            n_nodes, gnn, p.out_channels, unet, self.tasks,
            n_features=n_inputs, width=p.spot_width, dropout=p.dropout, input_dropout=p.input_dropout,
        )  # fmt: skip

    def predict(self, sections: Sequence[RegionSection], *, accelerator: str = "auto") -> list[TissuePrediction]:
        """Embed ``sections`` and predict their observations and regions."""
        net, device, predicted = self.fitted_net(), best_device(accelerator), []
        stage("predicting")
        net.to(device).eval()
        for s in sections:
            g = self.featurizer.tensors(s)
            with torch.no_grad():
                out = net(g.to(device))
            n = len(s.nodes)
            source, target = out.edges.cpu().numpy()
            attention = sparse.csr_matrix((out.attention.cpu().numpy(), (target, source)), shape=(n, n))
            regions, observations = {}, {}
            for task in self.tasks:
                regions[task], inside = self._combined(task, out, g, s)
                observations[task] = np.full((len(s.region), inside.shape[1]), np.nan, dtype=np.float32)
                observations[task][s.region >= 0] = inside
            weights = {task: self._stack(task, s).weights for task in self.tasks}
            states, z = out.states.cpu().numpy(), out.z.cpu().numpy()
            predicted.append(TissuePrediction(states, z, attention, regions, observations, weights))
        net.to("cpu")
        return predicted

    def _combined(self, task: str, out: Any, g: GraphTensors, s: RegionSection) -> tuple[Floats32, Floats32]:
        """Predictions of regions and observations by all members of the ensemble together."""
        at_regions, at_obs = out.logits[task].cpu().numpy(), out.obs_logits[task].cpu().numpy()
        share, others, mean = self.member_logits(task, at_obs, g, s)
        at_regions, at_obs = share * at_regions + mean, share * at_obs + others
        if task != EXPRESSION:
            return softmax(at_regions, axis=1).astype(np.float32), softmax(at_obs, axis=1).astype(np.float32)
        scale, centre = (self.featurizer.scales[f"expression_{name}"] for name in ("scale", "centre"))
        return (at_regions * scale + centre).astype(np.float32), (at_obs * scale + centre).astype(np.float32)

    def member_logits(
        self, task: str, network: Floats32, g: GraphTensors, s: RegionSection
    ) -> tuple[float, Floats, Floats]:
        """Weight of the network, and the other members' weighted logits of observations and regions."""
        if g.features is None:
            return 1.0, np.zeros(network.shape), np.zeros((len(s.nodes), network.shape[1]))
        stack, known, n_means = self._stack(task, s), s.region >= 0, self.n_features * len(self.params.neighbours)
        share, codes = stack.weights.network, s.labels.get(task)
        others = stack(g.features.numpy(), n_means, network, s.section.xy, codes, known, s.by_name) - share * network
        mean, _ = region_means(s.region[known], others, np.ones(len(others), dtype=bool), len(s.nodes))
        return share, others, mean.astype(np.float64)

    def unlabelled_stack(self, task: str) -> Stack:
        """Members that predict ``task`` in sections without labels; the network alone if the task has no ensemble."""
        return self.ensembles.get(task, _NETWORK_ALONE).unlabelled

    def _stack(self, task: str, s: RegionSection) -> Stack:
        """Members that predict ``task`` in a section; the network has less weight if genes are missing."""
        coverage = 1.0
        if s.by_name is not None and self.genes:
            coverage = float(np.isin(self.genes, s.by_name.genes).mean())
        return self.ensembles.get(task, _NETWORK_ALONE).stack(s.labels.get(task), coverage)

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        state["featurizer"] = {"scaling": self.featurizer.scales, "smoothed": self.featurizer.smoothed}
        state["ensembles"] = {task: Ensemble(ensemble.unlabelled) for task, ensemble in self.ensembles.items()}
        return state

    def _read_net(self, file: ModelFile) -> None:
        parts = file.value("featurizer", "dict[str, Any]")
        check_type("smoothed", parts["smoothed"], "SmoothedGenes | None")
        check_type("scaling", parts["scaling"], "dict[str, Floats]")
        check_shapes("Featurizer", parts["scaling"])
        self.featurizer = Featurizer(self.params, self.scaling, parts["scaling"], parts["smoothed"])
        super()._read_net(file)
