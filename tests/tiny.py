"""The smallest network, on the digits, as arguments and as flags."""

SIZE = dict(filters=2, repeat=1, scales=1)
DATASET = 'digits.1@20-100'
RUN = dict(SIZE, dataset=DATASET, batch=64, seed=1, train_kimg=1, report_kimg=1)


def flags(**values):
    """Returns the command line that gives these values, a list."""
    return ['--%s=%s' % item for item in values.items()]
