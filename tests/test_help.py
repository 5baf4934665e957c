"""`--help` of every script lists its options, with their defaults and what is allowed."""

import glob
import importlib
import os
import re

import pytest
from conftest import ROOT, assert_one_line_error, command

import libml
from libml import experiment, models

SCRIPTS = sorted(glob.glob('scripts/[!_]*.py', root_dir=ROOT))
METHODS = ['ablation/ab_mixmatch.py', *sorted(glob.glob('examples/*.py', root_dir=ROOT))]


def find_options(path):
    """Returns the options of a script, {name: options.Option}."""
    found = vars(importlib.import_module(os.path.splitext(path)[0].replace('/', '.')))
    if path in METHODS:
        (method,) = (v for v in found.values() if isinstance(v, type) and issubclass(v, models.MultiModel))
        return experiment.list_options(method)
    return found.get('OPTIONS', {})


def check_help(text, table):
    """Asserts that a help text lists the options of a table."""
    entries = {}
    for entry in re.split('^  --', text, flags=re.MULTILINE)[1:]:
        name, _, words = entry.partition(':')
        entries[name] = ' '.join(words.split())
    for name, option in table.items():
        switch = option.type is bool or isinstance(option.default, bool)
        entry = entries['[no]' + name if switch else name]
        default = str(option.default).lower() if switch else option.default
        assert default in (None, 'none') or "(default: '%s')" % (default,) in entry, entry
        assert ' '.join(option.limits.split()) in entry, entry
        assert not option.choices or entry.startswith('<%s>' % '|'.join(option.choices)), entry
    assert '[no]debug' in entries


def test_the_version_is_the_changelogs_newest():
    with open(os.path.join(ROOT, 'CHANGELOG.md'), encoding='utf-8') as file:
        newest = re.search(r'^## (\S+)', file.read(), re.MULTILINE)[1]
    assert libml.__version__.removesuffix('.dev0') == newest


@pytest.mark.parametrize('path', [*SCRIPTS, *METHODS])
def test_help_lists_each_option(path, server):
    done = server.run(path, '--help' if path in SCRIPTS else '-h')
    assert done.returncode == 0
    check_help(done.stdout, find_options(path))
    assert len(find_options(path)) > 0 or path == 'scripts/extract_accuracy.py'


def test_help_of_a_module():
    check_help(command('-m', 'ablation.ab_mixmatch', '--help').stdout, find_options('ablation/ab_mixmatch.py'))


def test_only_our_own_flags_are_suggested(server):
    line = assert_one_line_error(server.run('scripts/evaluate.py', '--run=x'), "flag 'run'", codes=(2,))
    assert 'run_with_pdb' not in line
    assert_one_line_error(server.run('scripts/evaluate.py', '--weigths=raw'), 'Did you mean: weights', codes=(2,))
    assert_one_line_error(server.run('scripts/evaluate.py', '--nodebug=1'), 'does not take an argument', codes=(2,))
