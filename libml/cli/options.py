"""Options: what a user can choose, each written once with its default, its meaning and what is allowed.

A table is a dict from a name to an Option. From it follow a script's flags, their checks and their defaults.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

from absl import flags

from libml import utils


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that a user can choose.

    Attributes:
        default: its value where none is given. Its type is the flag's type: bool, int, float or str.
        meaning: one sentence for --help.
        allowed: what a value must be, in words that complete 'it must be ...'; '' for no limit.
        valid: function of a value, True where it is allowed.
        choices: the only values allowed; () for no such list.
        type: the type of a value, where the default is None.
        path: whether it is a path, in which a leading ~ stands for the user's home.
    """

    default: Any
    meaning: str
    allowed: str = ''
    valid: Callable = lambda value: True
    choices: tuple = ()
    type: type = None
    path: bool = False


# Each function returns `allowed` and `valid` of an Option, as in Option(1, '...', *at_least(1)).


def at_least(low):
    """Finite numbers from `low`."""
    return 'at least %g' % low, lambda value: low <= value < math.inf


def above(low):
    """Finite numbers beyond `low`."""
    return 'a number above %g' % low, lambda value: low < value < math.inf


def between(low, high):
    """Numbers from `low` to `high`."""
    return '%s to %s' % (low, high), lambda value: low <= value <= high


def below(low, high):
    """Numbers from `low` up to, and without, `high`."""
    return 'at least %g and below %g' % (low, high), lambda value: low <= value < high


SEED = between(0, 2**32 - 1)  # What NumPy's generators take.

flags.disclaim_key_flags()  # So --help lists the flags under the script that called `define`, not under this module.
DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define(table, flag_values=flags.FLAGS):
    """Defines a flag for each option of a table."""
    for name, option in table.items():
        if option.choices:
            flags.DEFINE_enum(name, option.default, option.choices, option.meaning, flag_values=flag_values)
        else:
            kind = option.type or type(option.default)
            meaning = '%s Must be %s.' % (option.meaning, option.allowed) if option.allowed else option.meaning
            DEFINE[kind](name, option.default, meaning, flag_values=flag_values)


def chosen(table, flag_values=flags.FLAGS):
    """Returns the values of a table's flags as they were parsed, a dict."""
    return {name: flag_values[name].value for name in table}


def parse(table, words):
    """Returns the values of all options of a table after a command line's flags, such as ['--T=1', '--seed=3'].

    Raises:
        flags.Error: a flag is unknown, or its value is not of its type.
    """
    flag_values = flags.FlagValues()
    define(table, flag_values)
    flag_values(['', *words])
    return chosen(table, flag_values)


def fill(table, given):
    """Returns the values of all options of a table: those given, else the defaults; the ~ of paths is expanded.

    Raises:
        utils.Error: a name is not in the table, or a value is not allowed.
    """
    unknown = sorted(set(given) - set(table))
    if unknown:
        raise utils.Error('unknown option %s: known are %s' % (unknown[0], ', '.join(sorted(table))))
    values = {name: given.get(name, option.default) for name, option in table.items()}
    check(table, values)
    return {name: utils.expand(value) if table[name].path else value for name, value in values.items()}


def check(table, values):
    """Raises utils.Error where a value, by name, is not allowed. A default is always allowed."""
    for name, option in table.items():
        value = values[name]
        if value == option.default:
            continue
        if option.choices:
            utils.check(name, value, value in option.choices, 'one of %s' % ', '.join(option.choices))
        utils.check(name, value, option.valid(value), option.allowed)


def run(function, table, usage=''):
    """Runs a script, see utils.run: calls `function` with the words of its command line and the values of its flags.

    Args:
        function: takes the words by position, ~ expanded, and the options by name. What it returns is dropped.
        table: the options.
        usage: what an error says where the words are too few or too many for `function`.
    """
    define(table)
    utils.setup_tf()

    def main(argv):
        words, values = list(map(utils.expand, argv[1:])), fill(table, chosen(table))
        try:
            inspect.signature(function).bind(*words, **values)
        except TypeError as error:
            raise utils.Error('%s (given: %s)' % (usage, ' '.join(words) or 'no argument')) from error
        function(*words, **values)

    utils.run(main)
