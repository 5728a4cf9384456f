"""Steering by changing the estimate of the clean image."""

from .guidance import *
from .inverse import *
from .operators import *
from .posterior import *
