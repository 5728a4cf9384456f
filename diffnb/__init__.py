"""Image generation with diffusion models, as a literate library."""

__version__ = "0.1.0"


def __getattr__(name):
    # lazily, so that `import diffnb` brings torch and little else
    if name == "GenerativeModel":
        from diffnb.model import GenerativeModel

        return GenerativeModel
    raise AttributeError(f"module 'diffnb' has no attribute {name!r}")


def __dir__():
    return [*globals(), "GenerativeModel"]
