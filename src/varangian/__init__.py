"""Varangian guards training against Byzantine workers: distributed momentum, robust rules, attacks, the whole study."""

from __future__ import annotations

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
from .experiment import run as run
from .metrics import Measures as Measures
from .mixing import *  # noqa: F403
from .models import MODELS as MODELS
from .rules import *  # noqa: F403
from .transforms import Clip as Clip
from .transforms import Momentum as Momentum
from .transforms import SharedMomentum as SharedMomentum
from .transforms import Transform as Transform

__version__ = "0.1.0"
