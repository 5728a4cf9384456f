"""What noise does to data: schedules, processes and parametrizations."""

from .parametrizations import *
from .schedules import *
from .sdes import *
