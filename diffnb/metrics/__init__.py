"""How good images are."""

# all modules, and not only the one whose name is asked for: each of them adds to the registries `EXTRACTORS` and `METRICS`
from .classifiers import *
from .evaluation import *
from .extractors import *
from .frechet import *
from .gathering import *
from .inception import *
from .kernel import *
from .scores import *
from .sets import *
