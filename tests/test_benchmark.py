"""The benchmark runs and says what it should; how fast anything is, is not tested."""

import importlib.util
import math

import pytest
import tiny
from conftest import assert_one_line_error

from libml import files

BENCHMARK = 'scripts/benchmark.py'
TINY = tiny.flags(**tiny.SIZE, dataset=tiny.DATASET, batch=8, turns=1, turn=0)
ROWS = dict(step=8 if importlib.util.find_spec('torch') else 6, input=1, eval=2)


@pytest.mark.slow
def test_all_parts_are_rows_of_one_table_and_of_one_file(server, digits_dir, tmp_path):
    file = tmp_path / 'figures.json'
    done = server.run(BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, '--json=%s' % file)
    assert done.returncode == 0, done.stderr
    figures = files.read_json(str(file), default=None)
    assert {part: len(found['rows']) for part, found in figures['parts'].items()} == ROWS
    for part, found in figures['parts'].items():
        for row in found['rows']:
            assert '%-8s%s' % (part, row['what']) in done.stdout
            assert 0 < row['min'] <= row['median'] <= row['max'] < math.inf
            assert 0 < row['ratio'] < math.inf
        assert found['rows'][0]['ratio'] == 1
        assert found['peak_memory']['host'] > 10
    assert figures['flags']['filters'] == 2 and figures['machine']['cores'] >= 1


@pytest.mark.parametrize(
    'flags, word', [(['--parts=speed'], 'parts=speed'), (['--batch=1'], 'batch=1'), (['--turns=0'], 'turns')]
)
def test_what_is_wrong_is_one_line(flags, word, server, digits_dir):
    done = server.run(BENCHMARK, *TINY, '--data_dir=%s' % digits_dir, *flags)
    assert_one_line_error(done, word, codes=(1,))
