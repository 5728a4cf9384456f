"""Networks that estimate clean images."""

from .base import *
from .codecs import *
from .diffusers_unet import *
from .mlp import *
from .text import *
from .unet import *
