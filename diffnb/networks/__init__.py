"""Networks that estimate clean images."""

from .unet import *
