"""What the hardware decides: the devices, the threads of an operation, and whether XLA compiles. Imports utils only."""

import contextlib
import dataclasses
import functools

import tensorflow.compat.v1 as tf

from libml import utils

SMALL_UPDATE = 1e9  # Floating-point operations. Below, threads end their parts before a second thread is awake.
LARGE_RUN = 1e13  # Floating-point operations. XLA saves a sixth of them, and spends 10 to 15 s on compiling.


def find_devices(wanted=1):
    """Returns the names of the devices that share an update: GPUs, or logical CPU devices where there are none.

    Args:
        wanted: how many, as a number or a text; 'all': every GPU, or the CPU as one device.

    Raises:
        utils.Error: the machine has fewer GPUs.
    """
    gpus = utils.get_available_gpus()
    count = max(1, len(gpus)) if wanted == 'all' else int(wanted)
    if not gpus:
        return tuple('/device:CPU:%d' % i for i in range(count))
    utils.check('devices', wanted, count <= len(gpus), 'at most %d, the GPUs of this machine' % len(gpus))
    return tuple(gpus[:count])


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a model uses the hardware.

    Attributes:
        xla: bool, whether XLA compiles the networks.
        devices: names of the devices that share an update, each with a replica of the model.
    """

    xla: bool = False
    devices: tuple = dataclasses.field(default_factory=find_devices)

    @functools.cached_property
    def strategy(self):
        """The tf.distribute.Strategy of the devices; TensorFlow's default for one."""
        return tf.distribute.MirroredStrategy(self.devices) if len(self.devices) > 1 else tf.distribute.get_strategy()

    @property
    def gpu(self):
        """Name of the GPU of the replica that is being built, on which its batches wait; None on a CPU."""
        device = self.devices[utils.replica()]
        return device if 'GPU' in device else None

    def config(self):
        """Returns the ConfigProto of the model's session."""
        config = utils.get_config()
        if not self.gpu and len(self.devices) > 1:
            config.device_count['CPU'] = len(self.devices)
        return config


def choose(flop, updates, xla=None, devices=1):
    """Decides how a run uses the hardware; to be called once in a process, before its first session.

    Args:
        flop: floating-point operations of an update.
        updates: int, updates that the run will make.
        xla: whether XLA compiles the networks; None: where that is faster.
        devices: see find_devices, which says what is raised.

    Returns:
        Machine.
    """
    devices = find_devices(devices)
    share_operations(threads_that_pay(flop))
    xla = compiling_pays(flop, updates) if xla is None else xla
    return Machine(xla, devices)


def compiling_pays(flop, updates):
    """Returns whether XLA makes a run faster, its compilation included. Arguments as of `choose`.

    Measured on 2 CPU cores by scripts/benchmark.py. Nothing was measured on a GPU: other people report a gain there.
    """
    if utils.get_available_gpus():
        return True
    if flop < SMALL_UPDATE:  # One thread an operation is faster.
        return False
    if has_avx512():  # TensorFlow's own convolutions use 512-bit vectors, XLA's do not.
        return False
    return flop * updates > LARGE_RUN


def threads_that_pay(flop):
    """Returns how many threads should share an operation of an update of so many operations; 0: one a core."""
    return 1 if flop < SMALL_UPDATE else 0


def share_operations(threads):
    """Sets how many threads of the CPU share an operation; 0: one a core. The first session of a process decides."""
    config = utils.get_config()
    config.intra_op_parallelism_threads = threads
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        session.run(tf.constant(0))


def has_avx512():
    """Returns whether the CPU has 512-bit vectors; False where /proc/cpuinfo does not say."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        return ' avx512f ' in file.read()
    return False
