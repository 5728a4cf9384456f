"""Faces: the command line, and runs that leave a folder."""

from typing import TYPE_CHECKING

from ..importing import lazily

if TYPE_CHECKING:  # read by editors and by `lazily`, which imports a module when one of its names is asked for
    from .commands import *
    from .compare_command import *
    from .compare_results import *
    from .compare_runs import *
    from .comparisons import *
    from .dashboard_pages import *
    from .dashboard_command import *
    from .dashboard_parts import *
    from .demo_command import *
    from .distill_command import *
    from .draw_command import *
    from .export_command import *
    from .image_commands import *
    from .rating import *
    from .recipes import *
    from .runs import *
    from .shell import *
    from .studio import *
    from .translate_command import *
    from .translations import *
    from .tutorial_figures import *
    from .visualization import *
    from .web_page import *
    from .workshop import *
    from .workshop_pages import *

__getattr__, __dir__, __all__ = lazily(__name__)
