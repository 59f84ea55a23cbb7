"""From a torch model to flat vectors: parameters [d], and the gradients of h workers as one matrix [h, d].

workers   :class:`WorkerGradients`: which way, all that is asked for, and evaluation
chain     linear layers with ReLU between them, as products of matrices
twins     copies of a model that compute with other values
checks    what is no model here
"""

from .checks import check_module
from .twins import copied
from .workers import Batch, Method, Metric, WorkerGradients

__all__ = ["Batch", "Method", "Metric", "WorkerGradients", "check_module", "copied"]
