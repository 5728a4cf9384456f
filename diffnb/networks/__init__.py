"""Networks that estimate clean images."""

from .base import *
from .mlp import *
from .unet import *
