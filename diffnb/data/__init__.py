"""Images from anywhere."""

from typing import TYPE_CHECKING

from ..importing import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .captions import *
    from .image_sets import *
    from .loaders import *
    from .pairs import *
    from .picture_files import *
    from .pictures import *
    from .readers import *

__getattr__, __dir__, __all__ = lazily(__name__)
