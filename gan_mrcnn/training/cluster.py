# SPDX-License-Identifier: Apache-2.0
"""The workers of a training that a scheduler has started, as TF_CONFIG names them.

Everything else asks TF_CONFIG alone, see `multi_worker`. Slurm tells each process in variables of
its own, which TensorFlow's resolver reads. Kubernetes needs nothing here: the manifest
`configs/cluster/training.yaml` gives TF_CONFIG itself.
"""

import json
import os

import tensorflow as tf

from gan_mrcnn.utils.errors import UserError

# Ports below those that Linux gives to clients (from 32768 on): one range for each job, so that
# two jobs that share a node do not meet.
_FIRST_PORT, _JOBS, _PORTS_PER_JOB = 10_000, 1_000, 20


def set_tf_config_by_slurm() -> None:
    """Sets TF_CONFIG by the variables SLURM_* of a process that srun has started.

    A worker that is started again within its job finds the same ones. GPUs are Slurm's to give:
    a process uses all those that it sees.

    Raises:
      UserError: this is no process of srun, or a list of nodes that TensorFlow cannot read.
    """
    job, tasks = (int(os.environ.get(f'SLURM_{x}', '0')) for x in ('JOB_ID', 'STEP_NUM_TASKS'))
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=_FIRST_PORT + job % _JOBS * _PORTS_PER_JOB,
            # It would ask nvidia-smi, which fails on nodes without a GPU, and then hand out GPUs
            # that Slurm has handed out already.
            gpus_per_node=tasks,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        workers = resolver.cluster_spec().as_dict()['worker']
        index = _index_of_this_task(workers, resolver)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'--cluster slurm is for processes that srun starts ({" ".join(str(error).split())}): '
            'see configs/cluster/slurm.sh, or give TF_CONFIG'
        ) from error
    os.environ['TF_CONFIG'] = json.dumps(
        {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index}}
    )


def _index_of_this_task(workers: list[str], resolver) -> int:
    """By node and number on the node, where Slurm says them.

    The resolver goes by the rank, but sorts nodes as words: n10 comes before n2 there, and not in
    Slurm, which may also deal ranks to the nodes in turn. A worker that takes another one's address
    for its own waits forever.
    """
    rank = resolver.task_id
    node, local = os.environ.get('SLURMD_NODENAME'), os.environ.get('SLURM_LOCALID')
    if node is None or local is None:
        return rank
    of_node = [i for i, address in enumerate(workers) if address.rpartition(':')[0] == node]
    return of_node[int(local)] if int(local) < len(of_node) else rank
