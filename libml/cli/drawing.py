"""The pictures of scripts: the same whatever the user's matplotlibrc and a notebook's settings say."""

import contextlib
import os
import warnings

from matplotlib import style

from libml import files


@contextlib.contextmanager
def styling():
    """Gives matplotlib its own defaults inside. Names of classes may hold dollar signs, which are no formulas there."""
    with style.context(['default', {'text.parse_math': False}]):
        yield


def save(figure, path, **how):
    """Writes a Figure as PNG, whole or not at all; **how: arguments of Figure.savefig."""
    with files.naming(path), files.replacing(os.fspath(path)) as part, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # Signs of names that no font here has.
        figure.savefig(part, format='png', dpi=150, **how)
