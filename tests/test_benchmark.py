"""The benchmark runs and says what it should; how fast anything is, is not tested."""

import math

import pytest
from conftest import assert_one_line_error

from libml import files

BENCHMARK = 'scripts/benchmark.py'
TINY = ['--dataset=digits.1@20-100', '--batch=8', '--filters=2', '--repeat=1', '--scales=1', '--turns=1', '--turn=0']
ROWS = dict(step=6, guess=2, input=2, eval=2, startup=12)


@pytest.mark.parametrize('part', ROWS)
def test_a_part(part, server, digits_dir, tmp_path):
    file = tmp_path / 'figures.json'
    done = server.run(BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, '--parts=' + part, '--json=%s' % file)
    assert done.returncode == 0, done.stderr
    figures = files.read_json(str(file), default=None)
    rows = figures['parts'][part]['rows']
    assert len(rows) == ROWS[part]
    for row in rows:
        assert row['what'] in done.stdout
        assert 0 < row['min'] <= row['median'] <= row['max'] < math.inf
        assert 0 < row['ratio'] < math.inf
    assert figures['flags']['filters'] == 2 and figures['machine']['cores'] >= 1
    assert rows[0]['ratio'] == 1
    if part != 'startup':
        assert figures['parts'][part]['peak_memory']['host'] > 10


def test_each_part_has_a_process_and_one_file_holds_them_all(server, digits_dir, tmp_path):
    file = tmp_path / 'figures.json'
    done = server.run(BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, '--parts=input,eval', '--json=%s' % file)
    assert done.returncode == 0, done.stderr
    assert set(files.read_json(str(file), default=None)['parts']) == {'input', 'eval'}


def test_a_profile_is_written(server, digits_dir, tmp_path):
    done = server.run(
        BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, '--parts=step', '--profile=%s' % (tmp_path / 'profile')
    )
    assert done.returncode == 0, done.stderr
    (trace,) = (tmp_path / 'profile').rglob('*.xplane.pb')
    assert trace.stat().st_size > 1000


@pytest.mark.parametrize(
    'flags, word', [(['--parts=speed'], 'parts=speed'), (['--batch=1'], 'batch=1'), (['--turns=0'], 'turns')]
)
def test_what_is_wrong_is_one_line(flags, word, server, digits_dir):
    done = server.run(BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, *flags)
    assert_one_line_error(done, word, codes=(1,))
