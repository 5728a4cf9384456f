"""Numerical integration from noise to data."""

from .adaptive import *
from .base import *
from .checks import *
from .consistency import *
from .grid_search import *
from .multistep import *
from .ode import *
from .stochastic import *
