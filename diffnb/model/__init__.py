"""Names in, objects out: trained models and the facade before them."""

from typing import TYPE_CHECKING

from ..importing import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .conditions import *
    from .diffusers_folders import *
    from .distilling import *
    from .editing import *
    from .exporting import *
    from .facts import *
    from .generative import *
    from .latents import *
    from .learning import *
    from .packaged import *
    from .pipelines import *
    from .restoration import *
    from .saved import *
    from .shards import *
    from .trained import *
    from .translation import *

__getattr__, __dir__, __all__ = lazily(__name__)
