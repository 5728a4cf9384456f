"""Faces: the command line, and runs that leave a folder."""

from typing import TYPE_CHECKING

from ..core import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .commands import *
    from .image_commands import *
    from .recipes import *
    from .runs import *

__getattr__, __dir__, __all__ = lazily(__name__)
