"""The one object that samplers, guidance and likelihood consume, those that wrap networks from elsewhere, and the exact ones."""

from .checks import *
from .denoisers import *
from .foreign import *
from .oracles import *
