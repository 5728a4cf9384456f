"""The one object that samplers, guidance and likelihood consume, and the exact ones."""

from .denoisers import *
from .oracles import *
