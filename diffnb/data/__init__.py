"""Images from anywhere."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .captions import *
    from .image_sets import *
    from .loaders import *
    from .pairs import *
    from .picture_files import *
    from .pictures import *
    from .readers import *


@functools.cache
def _handed_on():
    from ..core import lazily  # not at the top: it brings torch, and some modules of this wing need nothing of it

    return lazily(__name__)


def __getattr__(name):
    attribute, _, names = _handed_on()
    return names if name == "__all__" else attribute(name)


def __dir__():
    return _handed_on()[1]()
