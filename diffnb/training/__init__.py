"""Training by fastai's Learner and callbacks."""

import warnings
from typing import TYPE_CHECKING

from ..importing import lazily

with warnings.catch_warnings():  # fastai scripts functions when it is imported, which newer versions of torch call deprecated
    warnings.simplefilter("ignore", FutureWarning)
    import fastai.learner  # noqa: F401  (here once, so that the modules of this wing import from fastai without a word)

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .again import *
    from .averages import *
    from .checkpoints import *
    from .distillation import *
    from .distributed import *
    from .interruptions import *
    from .learner import *
    from .losses import *
    from .matching import *
    from .monitoring import *
    from .plans import *
    from .reports import *
    from .steps import *

__getattr__, __dir__, __all__ = lazily(__name__)
