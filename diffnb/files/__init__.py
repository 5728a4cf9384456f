"""Model files: safe to read, and what may run of them."""

from typing import TYPE_CHECKING

from ..importing import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .bounds import *
    from .comparison import *
    from .container import *
    from .errors import *
    from .jail import *
    from .manifest import *
    from .master import *
    from .model_file import *
    from .operations import *
    from .programs import *
    from .report import *
    from .sandbox import *
    from .sources import *
    from .tracing import *
    from .trust import *
    from .worker import *

__getattr__, __dir__, __all__ = lazily(__name__)
