"""The benchmark runs and says what it should; how fast anything is, is not tested."""

import contextlib
import importlib.util
import math

import pytest
import tensorflow.compat.v1 as tf
import tiny
from conftest import assert_one_line_error
from easydict import EasyDict

from libml import files
from libml.cli import options
from scripts import benchmark

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


@pytest.mark.parametrize('precision', ['float32', 'tf32'])
def test_a_gpu_computes_in_the_precision_of_a_training(precision, digits_dir):
    given = options.parse(benchmark.OPTIONS, [*TINY, '--precision=%s' % precision, '--data_dir=%s' % digits_dir])
    with contextlib.ExitStack() as stack:
        benchmark.Bench(EasyDict(given), stack).make_model(xla=False)
        assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')
