"""Workers under Slurm: each knows its own address, whatever the nodes are called."""

import collections
import json
import os

import pytest

from gan_mrcnn.training import cluster, multi_worker
from gan_mrcnn.utils.errors import UserError


@pytest.fixture
def slurm(monkeypatch):
    """Sets the variables of a process that srun has started; returns its TF_CONFIG."""
    monkeypatch.setenv('TF_CONFIG', '')
    # No nvidia-smi to ask.
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def ask(nodes, per_node, tasks, rank, node, local, job='1234'):
        for name, value in {
            'JOB_ID': job,
            'PROCID': rank,
            'LOCALID': local,
            'STEP_NUM_TASKS': tasks,
            'STEP_NODELIST': nodes,
            'STEP_TASKS_PER_NODE': per_node,
        }.items():
            monkeypatch.setenv(f'SLURM_{name}', str(value))
        monkeypatch.setenv('SLURMD_NODENAME', node)
        cluster.set_tf_config_by_slurm()
        assert 'CUDA_VISIBLE_DEVICES' not in os.environ
        return json.loads(os.environ['TF_CONFIG'])

    return ask


# Nodes as Slurm writes and orders them, and ranks by block or in turn.
@pytest.mark.parametrize(
    'nodes, per_node, placed',
    [
        ('gpu[01-02]', '1(x2)', ['gpu01', 'gpu02']),
        ('n[2,10]', '2(x2)', ['n2', 'n2', 'n10', 'n10']),
        ('n[2,10]', '2(x2)', ['n2', 'n10', 'n2', 'n10']),
        ('a,b7', '3,1', ['a', 'a', 'a', 'b7']),
    ],
)
def test_every_process_finds_its_own_address(nodes, per_node, placed, slurm):
    seen, ports = [], collections.defaultdict(set)
    local = collections.Counter()
    for rank, node in enumerate(placed):
        number = local[node]
        local[node] += 1
        # Started again, it is the same worker.
        for _ in range(2):
            config = slurm(nodes, per_node, len(placed), rank, node, number)
        workers, index = config['cluster']['worker'], config['task']['index']
        assert multi_worker.num_workers() == len(placed)
        host, port = workers[index].split(':')
        assert host == node
        ports[node].add(int(port) - number)
        seen.append((index, tuple(workers)))
    assert sorted(index for index, _ in seen) == list(range(len(placed)))
    assert len({workers for _, workers in seen}) == 1
    # On a node, one port after the other, from the job's first.
    assert {x for of_node in ports.values() for x in of_node} == {10_000 + 234 * 20}


def test_jobs_on_one_node_have_ports_of_their_own(slurm):
    addresses = [
        slurm('n1', '1', 1, 0, 'n1', 0, job)['cluster']['worker'][0] for job in ('1234', '1235')
    ]
    assert addresses[0] != addresses[1]


@pytest.mark.parametrize('missing', ['PROCID', 'STEP_NODELIST', 'JOB_ID and all the others'])
def test_a_process_that_srun_did_not_start_is_told_so(missing, slurm, monkeypatch):
    slurm('n1', '1', 1, 0, 'n1', 0)
    for name in list(os.environ):
        if name.startswith('SLURM_') and (name.endswith(missing) or ' ' in missing):
            monkeypatch.delenv(name)
    with pytest.raises(
        UserError, match='--cluster slurm is for processes that srun starts'
    ) as error:
        cluster.set_tf_config_by_slurm()
    assert '\n' not in str(error.value) and 'configs/cluster/slurm.sh' in str(error.value)


def test_nodes_that_cannot_be_read_are_named(slurm):
    with pytest.raises(UserError, match=r'rack\[1-2\]n\[1-3\]'):
        slurm('rack[1-2]n[1-3]', '1(x6)', 6, 0, 'rack1n1', 0)
