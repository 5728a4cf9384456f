"""How good images are."""

from typing import TYPE_CHECKING

from ..core import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .evaluation import *
    from .extractors import *
    from .fid_weights import *
    from .frechet import *
    from .gathering import *
    from .kernel import *
    from .scores import *
    from .sets import *

__getattr__, __dir__, __all__ = lazily(__name__)
