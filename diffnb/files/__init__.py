"""Model files: safe to read, and what may run of them."""

from typing import TYPE_CHECKING

from ..core import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .bounds import *
    from .container import *
    from .errors import *
    from .jail import *
    from .lowered_bodies import *
    from .lowered_expressions import *
    from .manifest import *
    from .master import *
    from .model_file import *
    from .recipe_components import *
    from .recipe_expressions import *
    from .recipe_host import *
    from .recipe_interpreter import *
    from .recipe_operations import *
    from .recipe_plans import *
    from .recipe_scopes import *
    from .recipes import *
    from .report import *
    from .sandbox import *
    from .sources import *
    from .trust import *
    from .worker import *

__getattr__, __dir__, __all__ = lazily(__name__)
