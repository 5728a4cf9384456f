"""Networks that estimate clean images."""

from .base import *
from .codecs import *
from .diffusers_codecs import *
from .diffusers_unet import *
from .dit import *
from .frozen_text import *
from .learned_codec import *
from .mlp import *
from .second_image import *
from .text import *
from .unet import *
