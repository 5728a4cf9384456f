"""Fill the dynamic fields of pyproject.toml from settings.ini."""

from configparser import ConfigParser

from setuptools import setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key):
    """Return the non-empty lines of a setting."""
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


setup(
    python_requires=f">={settings['min_python']}",
    install_requires=lines("requirements"),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in settings if key.endswith("_requirements")},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["diffnb = diffnb._modidx:d"],  # by which nbdev finds the names that backticks and source links stand for
    },
)
