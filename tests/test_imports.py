"""Importing a module changes nothing, and brings only what it needs."""

import glob
import json
import os
import pkgutil

from conftest import ROOT, command

import ablation
import libml
import scripts

NAMES = [
    '%s.%s' % (package.__name__, module.name)
    for package in (libml, ablation, scripts)
    for module in pkgutil.walk_packages(package.__path__)
]


def imported(*names, cwd=ROOT, env=None):
    """Returns what tests/importing.py prints for some modules."""
    done = command(os.path.join(ROOT, 'tests', 'importing.py'), *names, cwd=cwd, env=env)
    assert (done.returncode, done.stderr) == (0, '')
    return json.loads(done.stdout)


def test_importing_changes_nothing(tmp_path):
    assert {'libml.train', 'libml.data_pair', 'ablation.ab_mixmatch', 'scripts.create_split'} <= set(NAMES)
    env = {k: v for k, v in os.environ.items() if k not in ('ML_DATA', 'HOME')}
    env.update(HOME=str(tmp_path / 'home'), PYTHONDONTWRITEBYTECODE='1')
    (tmp_path / 'here').mkdir()
    found = imported(*NAMES, cwd=tmp_path / 'here', env=env)
    assert set(NAMES) - {'libml.cli', 'libml.cli.quiet'} <= set(found.pop('new'))
    assert found == dict(written=[])
    assert list((tmp_path / 'here').iterdir()) == []


def test_scripts_hide_the_messages_of_tensorflow():
    """They call quiet.import_tensorflow before anything else imports TensorFlow."""
    code = """if True:
        import runpy, sys
        from libml.cli import quiet
        quiet.import_tensorflow = lambda: sys.exit('late' if 'tensorflow' in sys.modules else 'first')
        for path in sys.argv[1:]:
            try:
                runpy.run_path(path, run_name='__main__')
            except SystemExit as end:
                print(path, end)"""
    patterns = 'ablation/[!_]*.py', 'examples/*.py', 'scripts/[!_]*.py'
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern, root_dir=ROOT))]
    assert command('-c', code, *paths).stdout.splitlines() == [path + ' first' for path in paths]


def test_networks_bring_no_trainer():
    new = imported('libml.networks')['new']
    ours = {name.removeprefix('libml.') for name in new if name.startswith('libml.')}
    assert ours == {'networks', 'layers', 'running', 'running.replicas', 'utils'}
    assert not {name.split('.')[0] for name in new} & {'tensorboard', 'tqdm', 'fcntl', 'sklearn', 'scipy'}
