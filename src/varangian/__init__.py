"""Varangian guards training against Byzantine workers: distributed momentum, robust rules, attacks, the whole study.

Start with :class:`Algorithm` (one step, in two halves), :class:`Experiment` and :func:`run` (a whole training), and the
tables of names: ``RULES``, ``MIXINGS``, ``ATTACKS``, ``DATASETS``, ``MODELS``, ``PARTITIONS``. Each module is imported
when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import engines as engines
    from . import testing as testing
    from .core.algorithm import Algorithm as Algorithm
    from .core.algorithm import State as State
    from .core.attacks import ATTACKS as ATTACKS
    from .core.attacks import KNOWLEDGE as KNOWLEDGE
    from .core.attacks import ROP as ROP
    from .core.attacks import AntiCGE as AntiCGE
    from .core.attacks import Attack as Attack
    from .core.attacks import Backdoor as Backdoor
    from .core.attacks import ComposedDefence as ComposedDefence
    from .core.attacks import DataAttack as DataAttack
    from .core.attacks import Decoys as Decoys
    from .core.attacks import Defence as Defence
    from .core.attacks import Divided as Divided
    from .core.attacks import Empire as Empire
    from .core.attacks import Fang as Fang
    from .core.attacks import Found as Found
    from .core.attacks import Gaussian as Gaussian
    from .core.attacks import Hidden as Hidden
    from .core.attacks import HiddenVulnerability as HiddenVulnerability
    from .core.attacks import Inf as Inf
    from .core.attacks import Knowledge as Knowledge
    from .core.attacks import LabelFlip as LabelFlip
    from .core.attacks import LastRound as LastRound
    from .core.attacks import Little as Little
    from .core.attacks import Mimic as Mimic
    from .core.attacks import MinMax as MinMax
    from .core.attacks import MinSum as MinSum
    from .core.attacks import NaN as NaN
    from .core.attacks import Omniscient as Omniscient
    from .core.attacks import OwnData as OwnData
    from .core.attacks import Scattered as Scattered
    from .core.attacks import SignFlip as SignFlip
    from .core.attacks import Spied as Spied
    from .core.attacks import Task as Task
    from .core.attacks import ThreatModel as ThreatModel
    from .core.attacks import WorstCase as WorstCase
    from .core.attacks import Zero as Zero
    from .core.checks import Refused as Refused
    from .core.explanation import Explanation as Explanation
    from .core.explanation import explain as explain
    from .core.geometry import Geometry as Geometry
    from .core.geometry import mean_weights as mean_weights
    from .core.mixing import MIXINGS as MIXINGS
    from .core.mixing import AdaptiveClipping as AdaptiveClipping
    from .core.mixing import Bucketing as Bucketing
    from .core.mixing import Mixing as Mixing
    from .core.mixing import NearestNeighborMixing as NearestNeighborMixing
    from .core.mixing import StaticClipping as StaticClipping
    from .core.placement import Adaptive as Adaptive
    from .core.placement import Placed as Placed
    from .core.quarantine import Quarantine as Quarantine
    from .core.quarantine import Watched as Watched
    from .core.randomness import Draw as Draw
    from .core.rules import CAF as CAF
    from .core.rules import FLAME as FLAME
    from .core.rules import LASA as LASA
    from .core.rules import RULES as RULES
    from .core.rules import SMEA as SMEA
    from .core.rules import Aksel as Aksel
    from .core.rules import Average as Average
    from .core.rules import Bulyan as Bulyan
    from .core.rules import CenteredClipping as CenteredClipping
    from .core.rules import ClippedClustering as ClippedClustering
    from .core.rules import ComparativeGradientElimination as ComparativeGradientElimination
    from .core.rules import Coordinatewise as Coordinatewise
    from .core.rules import DivideAndConquer as DivideAndConquer
    from .core.rules import FLTrust as FLTrust
    from .core.rules import FoolsGold as FoolsGold
    from .core.rules import General as General
    from .core.rules import GeometricMedian as GeometricMedian
    from .core.rules import Krum as Krum
    from .core.rules import MeaMed as MeaMed
    from .core.rules import Median as Median
    from .core.rules import Medoid as Medoid
    from .core.rules import MinimumDiameterAveraging as MinimumDiameterAveraging
    from .core.rules import MoNNA as MoNNA
    from .core.rules import MultiKrum as MultiKrum
    from .core.rules import Nearest as Nearest
    from .core.rules import Phocas as Phocas
    from .core.rules import Rule as Rule
    from .core.rules import Selecting as Selecting
    from .core.rules import SignGuard as SignGuard
    from .core.rules import TrimmedMean as TrimmedMean
    from .core.rules import published as published
    from .core.shares import WeightBreakdown as WeightBreakdown
    from .core.shares import size_weights as size_weights
    from .core.stages import refuse_faulty as refuse_faulty
    from .core.stages import refuse_overweight as refuse_overweight
    from .core.suspects import Detection as Detection
    from .core.suspects import detection as detection
    from .core.theory import empirical_kappa as empirical_kappa
    from .core.transforms import Clip as Clip
    from .core.transforms import Momentum as Momentum
    from .core.transforms import SharedMomentum as SharedMomentum
    from .core.transforms import Transform as Transform
    from .core.vectors import ModelShape as ModelShape
    from .core.vectors import flatten as flatten
    from .core.vectors import unflatten as unflatten
    from .runs.doctor import Diagnosis as Diagnosis
    from .runs.doctor import doctor as doctor
    from .runs.experiment import ConfigurationError as ConfigurationError
    from .runs.experiment import Experiment as Experiment
    from .runs.folders import FolderInUse as FolderInUse
    from .runs.holdings import Heterogeneity as Heterogeneity
    from .runs.holdings import heterogeneity as heterogeneity
    from .runs.live.schema import read_events as read_events
    from .runs.replaying import Replay as Replay
    from .runs.replaying import replay as replay
    from .runs.results import Evaluation as Evaluation
    from .runs.results import Result as Result
    from .runs.results import load_model as load_model
    from .runs.results import read as read
    from .runs.running import resume as resume
    from .runs.running import run as run
    from .simulation.clients import Population as Population
    from .simulation.data import DATASETS as DATASETS
    from .simulation.data import PARTITIONS as PARTITIONS
    from .simulation.data import DataError as DataError
    from .simulation.data import Dataset as Dataset
    from .simulation.data import Split as Split
    from .simulation.data.handed import dataset as dataset
    from .simulation.gradients import WorkerGradients as WorkerGradients
    from .simulation.losses import LOSSES as LOSSES
    from .simulation.metrics import Measures as Measures
    from .simulation.models import MODELS as MODELS
    from .simulation.scores import METRICS as METRICS
    from .study.advice import Advice as Advice
    from .study.advice import advise as advise
    from .study.grid import Grid as Grid
    from .study.report import report as report
    from .study.score import Card as Card
    from .study.score import score as score
    from .study.sweep import Sweep as Sweep
    from .study.sweep import sweep as sweep
    from .study.tune import Search as Search
    from .study.tune import Tuning as Tuning
    from .study.tune import tune as tune
    from .study.watching import Watcher as Watcher

__version__ = "0.2.0"

# Where each public name lives: importing the package costs nothing until one is used. No module may bear the name of
# a function listed here, since importing it would put the module in the function's place.
_HOMES = {
    "core.algorithm": "Algorithm State",
    "core.attacks": "AntiCGE Attack ATTACKS Backdoor ComposedDefence DataAttack Decoys Defence Divided Empire Fang "
    "Found Gaussian Hidden HiddenVulnerability Inf Knowledge KNOWLEDGE LabelFlip LastRound Little Mimic MinMax MinSum "
    "NaN Omniscient OwnData ROP Scattered SignFlip Spied Task ThreatModel WorstCase Zero",
    "core.checks": "Refused",
    "simulation.clients": "Population",
    "simulation.data": "DATASETS DataError Dataset PARTITIONS Split",
    "simulation.data.handed": "dataset",
    "runs.doctor": "Diagnosis doctor",
    "runs.experiment": "ConfigurationError Experiment",
    "core.explanation": "Explanation explain",
    "runs.folders": "FolderInUse",
    "core.geometry": "Geometry mean_weights",
    "simulation.gradients": "WorkerGradients",
    "simulation.losses": "LOSSES",
    "simulation.metrics": "Measures",
    "core.mixing": "AdaptiveClipping Bucketing MIXINGS Mixing NearestNeighborMixing StaticClipping",
    "simulation.models": "MODELS",
    "simulation.scores": "METRICS",
    "core.placement": "Adaptive Placed",
    "core.quarantine": "Quarantine Watched",
    "core.randomness": "Draw",
    "runs.holdings": "Heterogeneity heterogeneity",
    "runs.live.schema": "read_events",
    "runs.replaying": "Replay replay",
    "runs.results": "Evaluation Result load_model read",
    "runs.running": "resume run",
    "core.rules": "Aksel Average Bulyan CAF CenteredClipping ClippedClustering ComparativeGradientElimination "
    "Coordinatewise DivideAndConquer FLAME FLTrust FoolsGold General GeometricMedian Krum LASA MeaMed Median Medoid "
    "MinimumDiameterAveraging MoNNA MultiKrum Nearest Phocas RULES Rule SMEA Selecting SignGuard TrimmedMean published",
    "core.shares": "WeightBreakdown size_weights",
    "core.stages": "refuse_faulty refuse_overweight",
    "study.advice": "Advice advise",
    "study.grid": "Grid",
    "study.sweep": "Sweep sweep",
    "study.tune": "Search Tuning tune",
    "study.watching": "Watcher",
    "core.suspects": "Detection detection",
    "core.theory": "empirical_kappa",
    "core.transforms": "Clip Momentum SharedMomentum Transform",
    "core.vectors": "ModelShape flatten unflatten",
    "study.report": "report",
    "study.score": "Card score",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted([*_HOME_OF, "engines", "testing"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
