"""What the hardware decides: the devices, the threads of an operation, and whether XLA compiles."""

import contextlib
import dataclasses
import functools
import os
import re
import socket
import sys
import threading
import time
import zlib
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import attr_value_pb2

from libml import utils
from libml.cli import script
from libml.running import replicas

# Floating-point operations of an update. Below, several threads for an operation are slower than one.
SMALL_UPDATE = 1e9
WATCH = 5  # Seconds between two looks at the other hosts.
LONG_RUN = 2000  # Updates. Above, on a GPU, XLA saves more than its 25 s of compiling; an H100 gained 12 ms an update.
NVIDIA = '/dev/nvidiactl'  # Exists where the driver of an NVIDIA GPU runs.


def find_devices(wanted=1):
    """Returns the names of the devices that share an update: GPUs, or logical CPU devices where there are none.

    Args:
        wanted: how many, as a number or a text; 'all': every GPU, or the CPU as one device.

    Raises:
        utils.Error: the machine has fewer GPUs.
    """
    gpus = utils.get_available_gpus()
    count = max(1, len(gpus)) if wanted == 'all' else int(wanted)
    utils.require('devices', wanted, not gpus or count <= len(gpus), 'at most %d, the GPUs of this machine' % len(gpus))
    return tuple(gpus[:count] or ['/device:CPU:%d' % i for i in range(count)])


def find_cluster():
    """Returns the ClusterResolver of a run on several hosts, None on one host.

    TF_CONFIG or srun's variables describe the hosts; utils.Error is raised where they do not describe workers.
    """
    resolvers = tf.distribute.cluster_resolver
    try:
        if os.environ.get('TF_CONFIG', '{}').strip() not in ('', '{}'):
            found = resolvers.TFConfigClusterResolver()
        else:
            tasks = int(os.environ.get('SLURM_STEP_NUM_TASKS', 1))
            # The numbers of GPUs are not used; without them, the resolver would call nvidia-smi.
            more = dict(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
            found = resolvers.SlurmClusterResolver(**more) if tasks > 1 else None
        spec = found.cluster_spec().as_dict() if found else {}
        if sum(map(len, spec.values())) < 2:
            return None
        if set(spec) != {'worker'} or found.task_type != 'worker' or not 0 <= found.task_id < len(spec['worker']):
            raise ValueError('the cluster must have workers alone, and this process be one of them')
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        text = 'TF_CONFIG, or what srun says, describes no cluster for a run: %s'
        raise utils.Error(text % utils.explain(error)) from error
    return found


def answers(address):
    """Returns whether a host's server, `<name>:<port>`, takes connections."""
    name, port = address.rsplit(':', 1)
    with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=10):
        return True
    return False


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a model uses the hardware.

    Attributes:
        xla: bool, whether XLA compiles: the whole update, or on several GPUs what TensorFlow chooses of it.
        devices: names of the devices of this host that share an update, each with a replica of the model.
        cluster: tf.distribute's ClusterResolver of the hosts that share an update; None: this host alone.
    """

    xla: bool = False
    devices: tuple = dataclasses.field(default_factory=find_devices)
    cluster: Any = None

    @property
    def addresses(self):
        """The `<name>:<port>` of each host of a cluster."""
        return self.cluster.cluster_spec().as_dict()['worker']

    @property
    def hosts(self):
        """The number of hosts."""
        return len(self.addresses) if self.cluster else 1

    @property
    def host(self):
        """The number of this host, from 0; host 0 writes the run's folder."""
        return self.cluster.task_id if self.cluster else 0

    @property
    def replicas(self):
        """The number of devices that share an update, on all hosts."""
        return self.hosts * len(self.devices)

    @functools.cached_property
    def strategy(self):
        """The tf.distribute.Strategy of the devices; TensorFlow's default for one."""
        if self.replicas == 1:
            return tf.distribute.get_strategy()
        if not self.cluster:
            return tf.distribute.MirroredStrategy(self.devices)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            self.cluster.cluster_spec(),
            task_type='worker',
            task_id=self.host,
            num_accelerators={'GPU': len(self.devices) if self.gpu else 0},
            rpc_layer='grpc',
        )
        return tf.distribute.experimental.MultiWorkerMirroredStrategy(cluster_resolver=resolver)

    @functools.cached_property
    def server(self):
        """The tf.distribute.Server of this host in a cluster, once those of all hosts answer."""
        server = tf.distribute.Server(self.cluster.cluster_spec(), 'worker', self.host, config=self.config())
        while not all(map(answers, self.addresses)):  # They start at different times.
            time.sleep(0.1)
        return server

    @property
    def target(self):
        """What a session connects to: this host's server in a cluster, '' for none."""
        return self.server.target if self.cluster else ''

    @property
    def gpu(self):
        """Name of the GPU of the replica that is being built; None on a CPU. The replica's batches wait there."""
        device = self.devices[replicas.get_number() % len(self.devices)]
        return device if device in utils.get_available_gpus() else None

    @property
    def compiles_update(self):
        """Whether XLA compiles the whole update: not if devices add up their gradients in the midst of it."""
        return self.xla and self.replicas == 1

    def config(self):
        """Returns the ConfigProto of the model's session."""
        config = utils.get_config()
        if self.xla and self.gpu and not self.compiles_update:  # TensorFlow chooses what it compiles.
            config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_2
        if not self.gpu and len(self.devices) > 1:
            config.device_count['CPU'] = len(self.devices)
        return self.strategy.update_config_proto(config) if self.replicas > 1 else config

    @contextlib.contextmanager
    def watching_hosts(self):
        """Watches the other hosts inside. If one is lost, this process ends with one line.

        (TensorFlow alone may wait for ever.) Gives a threading.Event, which ends the watch; to be set when the hosts no
        longer wait for each other.
        """
        over = threading.Event()
        if self.hosts > 1 and self.server:  # From here on, all hosts answer.
            threading.Thread(target=self.watch, args=[over], daemon=True).start()
        try:
            yield over
        except tf.errors.OpError as error:
            lost = re.search(r'remote target /job:worker/replica:0/task:(\d+)', error.message)
            if not lost:
                raise
            raise self.lost_error(int(lost[1])) from error
        finally:
            over.set()

    def watch(self, over):
        """Polls all hosts until `over` is set. A lost host ends this process."""
        while not over.wait(WATCH):
            for host, address in enumerate(self.addresses):
                if not (answers(address) or over.wait(WATCH) or answers(address)):
                    print(file=sys.stderr)  # It ends the progress bar's line.
                    os._exit(script.fail(self.lost_error(host), 1))

    def lost_error(self, host):
        """Returns the utils.Error of a host that no longer answers."""
        text = 'host %d (%s) no longer answers: start all hosts again to continue from the newest checkpoint'
        return utils.Error(text % (host, self.addresses[host]))

    def check_hosts(self, text):
        """Raises utils.Error if a host calls this with another text than host 0."""
        if self.hosts == 1:
            return
        mine = np.zeros(self.hosts, np.int64)
        mine[self.host] = zlib.crc32(text.encode())
        with tf.Graph().as_default(), self.strategy.scope():
            digests = replicas.add_up(self.strategy, lambda: tf.constant(mine))
            with self.watching_hosts(), tf.Session(self.target, config=self.config()) as session:
                found = session.run(digests)
        if other := next((host for host, digest in enumerate(found) if digest != found[0]), 0):
            raise utils.Error('host %d was started with other flags than host 0: give all hosts the same' % other)


def choose(flop, updates, xla=None, devices=1):
    """Returns the Machine of a run; to be called once in a process, before its first session.

    Args:
        flop: floating-point operations of an update.
        updates: int, updates that the run will make.
        xla: whether XLA compiles; None: if that is faster.
        devices: see find_devices.

    Raises:
        utils.Error: see find_devices and find_cluster; or hosts without GPUs are to have several devices each.
    """
    cluster = find_cluster()
    devices = find_devices(devices)
    gpus = utils.get_available_gpus()
    if not gpus and os.path.exists(NVIDIA) and os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1', 'NoDevFiles'):
        utils.warn("TensorFlow finds no GPU that it can use; if libraries are missing: pip install -e '.[gpu]'")
    if xla and not gpus and (cluster or len(devices) > 1):
        utils.warn('XLA compiles nothing if several CPU devices share an update')
    if cluster and len(devices) > 1:
        utils.require('devices', len(devices), gpus, '1 on each of several hosts without GPUs')
    set_operation_threads(choose_operation_threads(flop))
    return Machine(is_xla_faster(updates) if xla is None else xla, devices, cluster)


def is_xla_faster(updates):
    """Returns whether XLA makes a run faster, its compilation included: on a GPU, if it is not short."""
    return bool(utils.get_available_gpus()) and updates > LONG_RUN


def choose_operation_threads(flop):
    """Returns how many threads should share an operation of an update of `flop` operations; 0: one for each core."""
    return 1 if flop < SMALL_UPDATE else 0


def set_operation_threads(threads):
    """Sets how many threads share an operation; 0: one for each core. The first session of a process decides."""
    config = utils.get_config()
    config.intra_op_parallelism_threads = threads
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        session.run(tf.constant(0))


@contextlib.contextmanager
def switching(tf32):
    """Lets a GPU round the factors of its products to TF32 inside, or not: a switch of the whole process."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def keep_draws(graph):
    """Keeps TensorFlow from choosing the random draws that a graph has by now for XLA: it would draw other numbers."""
    for op in graph.get_operations():
        if op.type.startswith('StatelessRandom'):
            op._set_attr('_XlaCompile', attr_value_pb2.AttrValue(b=False))
