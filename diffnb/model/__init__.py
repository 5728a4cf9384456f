"""Names in, objects out: trained models and the facade before them."""

import functools
from typing import TYPE_CHECKING

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
    from .shards import *
    from .trained import *
    from .translation import *


@functools.cache
def _handed_on():
    from ..core import lazily  # not at the top: it brings torch, and some modules of this wing need nothing of it

    return lazily(__name__)


def __getattr__(name):
    attribute, _, names = _handed_on()
    return names if name == "__all__" else attribute(name)


def __dir__():
    return _handed_on()[1]()
