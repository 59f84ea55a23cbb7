"""Varangian guards training against Byzantine workers: distributed momentum, robust rules, attacks, the whole study."""

from __future__ import annotations

from . import engines as engines
from . import testing as testing
from .algorithm import Algorithm as Algorithm
from .algorithm import State as State
from .attacks import *  # noqa: F403
from .data import DATASETS as DATASETS
from .data import PARTITIONS as PARTITIONS
from .data import DataError as DataError
from .experiment import ConfigurationError as ConfigurationError
from .experiment import Experiment as Experiment
from .experiment import Result as Result
from .experiment import read as read
from .experiment import resume as resume
from .experiment import run as run
from .explain import Explanation as Explanation
from .explain import explain as explain
from .folders import FolderInUse as FolderInUse
from .metrics import Measures as Measures
from .mixing import *  # noqa: F403
from .models import MODELS as MODELS
from .replay import Replay as Replay
from .replay import replay as replay
from .rules import *  # noqa: F403
from .theory import empirical_kappa as empirical_kappa
from .transforms import Clip as Clip
from .transforms import Momentum as Momentum
from .transforms import SharedMomentum as SharedMomentum
from .transforms import Transform as Transform
from .vectors import ModelShape as ModelShape
from .vectors import flatten as flatten
from .vectors import unflatten as unflatten

__version__ = "0.1.0"
