"""Options: what a user can choose, each written once with its default, its meaning and what is allowed.

A table is a dict from a name to an Option. From it follow a script's flags, their checks and their defaults.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from libml import utils


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` on, or above `above`, up to `high`, or below `below`. Its text says what is allowed."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = 1e38  # Larger ones overflow in float32.

    def __call__(self, value):
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self):
        if self.high < math.inf:
            return '%s to %s' % (self.low, self.high)
        least = 'a number above %g' % self.above if self.above > -math.inf else 'at least %g' % self.low
        return least if self.below == Range.below else '%s and below %g' % (least, self.below)


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that a user can choose.

    Attributes:
        default: its value where none is given. Its type is the flag's type: bool, int, float or str.
        meaning: one sentence for --help.
        valid: function of a value, True where it is allowed, such as a Range; None: every value is.
        allowed: what a value must be, in words that complete 'it must be ...'; '': the text of `valid`.
        choices: the only values allowed; () for no such list.
        type: the type of a value, where the default is None.
        path: whether it is a path, in which a leading ~ stands for the user's home.
    """

    default: Any
    meaning: str
    valid: Callable[[Any], bool] | None = None
    allowed: str = ''
    choices: tuple = ()
    type: Any = None
    path: bool = False

    @property
    def limits(self) -> str:
        """What a value must be, in words; '' if there is no limit."""
        return self.allowed or (str(self.valid) if self.valid else '')


SEED = Range(0, 2**32 - 1)  # What NumPy's generators take.

DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define_flags(table, flag_values=flags.FLAGS):
    """Defines a flag for each option of a table."""
    for name, option in table.items():
        if option.choices:
            flags.DEFINE_enum(name, option.default, option.choices, option.meaning, flag_values=flag_values)
        else:
            kind = option.type or type(option.default)
            meaning = '%s Must be %s.' % (option.meaning, option.limits) if option.limits else option.meaning
            DEFINE[kind](name, option.default, meaning, flag_values=flag_values)


def get_values(table, flag_values=flags.FLAGS):
    """Returns the values of a table's flags as they were parsed, a dict."""
    return {name: flag_values[name].value for name in table}


def parse(table, words):
    """Returns the values of all options of a table after a command line's flags, such as ['--T=1', '--seed=3'].

    Raises:
        flags.Error: a flag is unknown, or its value is not of its type.
    """
    flag_values = flags.FlagValues()
    define_flags(table, flag_values)
    flag_values(['', *words])
    return get_values(table, flag_values)


KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}


def convert(value, kind):
    """Returns a value as one of `kind`, a key of KINDS, if it means the same: NumPy's 1 as 1.0, a Path as a text."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if kind is str:
        return os.fspath(value) if isinstance(value, os.PathLike) else str(value) if np.isscalar(value) else value
    if kind is bool or not isinstance(value, numbers.Real):
        return value
    return kind(value) if kind is float or float(value).is_integer() else value


def fill(table, given):
    """Returns the values of all options of a table: those given and not None, else the defaults; expands ~ of paths.

    Raises:
        utils.Error: a name is not in the table, or a value is not allowed. A default is always allowed.
    """
    unknown = sorted(set(given) - set(table))
    if unknown:
        raise utils.Error('unknown option %s: known are %s' % (unknown[0], ', '.join(sorted(table))))
    values = {name: given[name] if given.get(name) is not None else table[name].default for name in table}
    for name, option in table.items():
        kind = option.type or type(option.default)
        value = values[name] = convert(values[name], kind)
        utils.require(name, value, value is option.default or type(value) is kind, KINDS[kind])
        if option.choices and value != option.default:
            utils.require(name, value, value in option.choices, 'one of %s' % ', '.join(option.choices))
        utils.require(name, value, value == option.default or not option.valid or option.valid(value), option.limits)
    return {name: utils.expand(value) if table[name].path else value for name, value in values.items()}
