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
    from .algorithm import Algorithm as Algorithm
    from .algorithm import State as State
    from .attacks import ATTACKS as ATTACKS
    from .attacks import ROP as ROP
    from .attacks import AntiCGE as AntiCGE
    from .attacks import Attack as Attack
    from .attacks import ComposedDefence as ComposedDefence
    from .attacks import Defence as Defence
    from .attacks import Empire as Empire
    from .attacks import Fang as Fang
    from .attacks import Found as Found
    from .attacks import Gaussian as Gaussian
    from .attacks import HiddenVulnerability as HiddenVulnerability
    from .attacks import Inf as Inf
    from .attacks import Knowledge as Knowledge
    from .attacks import LabelFlip as LabelFlip
    from .attacks import Little as Little
    from .attacks import Mimic as Mimic
    from .attacks import MinMax as MinMax
    from .attacks import MinSum as MinSum
    from .attacks import NaN as NaN
    from .attacks import SignFlip as SignFlip
    from .attacks import WorstCase as WorstCase
    from .attacks import Zero as Zero
    from .checks import Refused as Refused
    from .data import DATASETS as DATASETS
    from .data import PARTITIONS as PARTITIONS
    from .data import DataError as DataError
    from .data import Dataset as Dataset
    from .data import Split as Split
    from .experiment import ConfigurationError as ConfigurationError
    from .experiment import Evaluation as Evaluation
    from .experiment import Experiment as Experiment
    from .experiment import Result as Result
    from .experiment import load_model as load_model
    from .experiment import read as read
    from .experiment import resume as resume
    from .experiment import run as run
    from .explanation import Explanation as Explanation
    from .explanation import explain as explain
    from .folders import FolderInUse as FolderInUse
    from .geometry import Geometry as Geometry
    from .geometry import mean_weights as mean_weights
    from .metrics import Measures as Measures
    from .mixing import MIXINGS as MIXINGS
    from .mixing import AdaptiveClipping as AdaptiveClipping
    from .mixing import Bucketing as Bucketing
    from .mixing import Mixing as Mixing
    from .mixing import NearestNeighborMixing as NearestNeighborMixing
    from .mixing import StaticClipping as StaticClipping
    from .models import MODELS as MODELS
    from .randomness import Draw as Draw
    from .replaying import Replay as Replay
    from .replaying import replay as replay
    from .rules import CAF as CAF
    from .rules import FLAME as FLAME
    from .rules import LASA as LASA
    from .rules import RULES as RULES
    from .rules import SMEA as SMEA
    from .rules import Aksel as Aksel
    from .rules import Average as Average
    from .rules import Bulyan as Bulyan
    from .rules import CenteredClipping as CenteredClipping
    from .rules import ClippedClustering as ClippedClustering
    from .rules import ComparativeGradientElimination as ComparativeGradientElimination
    from .rules import Coordinatewise as Coordinatewise
    from .rules import DivideAndConquer as DivideAndConquer
    from .rules import FLTrust as FLTrust
    from .rules import FoolsGold as FoolsGold
    from .rules import General as General
    from .rules import GeometricMedian as GeometricMedian
    from .rules import Krum as Krum
    from .rules import MeaMed as MeaMed
    from .rules import Median as Median
    from .rules import Medoid as Medoid
    from .rules import MinimumDiameterAveraging as MinimumDiameterAveraging
    from .rules import MoNNA as MoNNA
    from .rules import MultiKrum as MultiKrum
    from .rules import Nearest as Nearest
    from .rules import Phocas as Phocas
    from .rules import Rule as Rule
    from .rules import Selecting as Selecting
    from .rules import SignGuard as SignGuard
    from .rules import TrimmedMean as TrimmedMean
    from .rules import published as published
    from .rules.core import refuse_faulty as refuse_faulty
    from .theory import empirical_kappa as empirical_kappa
    from .transforms import Clip as Clip
    from .transforms import Momentum as Momentum
    from .transforms import SharedMomentum as SharedMomentum
    from .transforms import Transform as Transform
    from .vectors import ModelShape as ModelShape
    from .vectors import flatten as flatten
    from .vectors import unflatten as unflatten

__version__ = "0.1.0"

# Where each public name lives: importing the package costs nothing until one is used. No module may bear the name of
# a function listed here, since importing it would put the module in the function's place.
_HOMES = {
    "algorithm": "Algorithm State",
    "attacks": "ATTACKS AntiCGE Attack ComposedDefence Defence Empire Fang Found Gaussian HiddenVulnerability Inf "
    "Knowledge LabelFlip Little Mimic MinMax MinSum NaN ROP SignFlip WorstCase Zero",
    "checks": "Refused",
    "data": "DATASETS DataError Dataset PARTITIONS Split",
    "experiment": "ConfigurationError Evaluation Experiment Result load_model read resume run",
    "explanation": "Explanation explain",
    "folders": "FolderInUse",
    "geometry": "Geometry mean_weights",
    "metrics": "Measures",
    "mixing": "AdaptiveClipping Bucketing MIXINGS Mixing NearestNeighborMixing StaticClipping",
    "models": "MODELS",
    "randomness": "Draw",
    "replaying": "Replay replay",
    "rules": "Aksel Average Bulyan CAF CenteredClipping ClippedClustering ComparativeGradientElimination "
    "Coordinatewise DivideAndConquer FLAME FLTrust FoolsGold General GeometricMedian Krum LASA MeaMed Median Medoid "
    "MinimumDiameterAveraging MoNNA MultiKrum Nearest Phocas RULES Rule SMEA Selecting SignGuard TrimmedMean published",
    "rules.core": "refuse_faulty",
    "theory": "empirical_kappa",
    "transforms": "Clip Momentum SharedMomentum Transform",
    "vectors": "ModelShape flatten unflatten",
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
