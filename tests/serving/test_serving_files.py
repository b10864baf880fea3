"""configs/cluster/serving.yaml, and the parameters that docs/serving_production.md gives: what they
name exists, and TF Serving's own messages read them."""

import pathlib
import re
import sys

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from gan_mrcnn.serving import export
from gan_mrcnn.serving import warmup as warmup_lib

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import config_messages  # noqa: E402
import stock_versions  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = ROOT / 'configs/cluster/serving.yaml'
PAGE = (ROOT / 'docs/serving_production.md').read_text(encoding='utf-8')
# Those of its main.cc, of 2.20.0, that file or page use.
FLAGS = {
    *('port', 'rest_api_port', 'rest_api_num_threads', 'rest_api_timeout_in_ms'),
    *('model_config_file', 'model_config_file_poll_wait_seconds', 'monitoring_config_file'),
    *('allow_version_labels_for_unavailable_models', 'num_load_threads', 'grpc_max_threads'),
    *('tensorflow_intra_op_parallelism', 'tensorflow_inter_op_parallelism'),
    *('enable_batching', 'batching_parameters_file'),
}


@pytest.fixture(scope='module')
def objects():
    """(kind, name) -> object."""
    documents = yaml.safe_load_all(FILE.read_text(encoding='utf-8'))
    return {(one['kind'], one['metadata']['name']): one for one in documents}


@pytest.fixture(scope='module')
def pod(objects):
    return objects['Deployment', 'serving']['spec']['template']


@pytest.fixture(scope='module')
def container(pod):
    (container,) = pod['spec']['containers']
    return container


@pytest.fixture(scope='module')
def flags(container):
    return dict(argument.removeprefix('--').split('=') for argument in container['args'])


def blocks(language):
    return re.findall(rf'```{language}\n(.+?)```', PAGE, re.DOTALL)


def test_flags_are_those_of_tf_serving_and_files_are_mounted(objects, pod, container, flags):
    assert set(flags) <= FLAGS
    assert set(re.findall(r'`--(\w+)=', PAGE)) <= FLAGS
    mounts = {one['mountPath']: one['name'] for one in container['volumeMounts']}
    for name in ('model_config_file', 'monitoring_config_file'):
        folder, file = flags[name].rsplit('/', 1)
        (volume,) = [one for one in pod['spec']['volumes'] if one['name'] == mounts[folder]]
        assert file in objects['ConfigMap', volume['configMap']['name']]['data']
    claims = [
        volume['persistentVolumeClaim']['claimName']
        for volume in pod['spec']['volumes']
        if 'persistentVolumeClaim' in volume
    ]
    assert all(('PersistentVolumeClaim', name) in objects for name in claims)


def test_models_are_where_an_export_writes_them(objects, container):
    text = objects['ConfigMap', 'serving']['data']['models.config']
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    folder, name = model.base_path.rsplit('/', 1)
    assert model.name == name == export.MODEL_NAME
    assert folder in [mount['mountPath'] for mount in container['volumeMounts']]
    check_labels(model)


def check_labels(model):
    """A label of a version that is not served would be answered 404."""
    served = list(model.model_version_policy.specific.versions)
    assert served == sorted(set(served)) and set(model.version_labels.values()) <= set(served)
    assert 'stable' in model.version_labels


def test_the_steps_to_a_new_version_are_ones_that_tf_serving_takes():
    """A label in use may only be given to a version that is loaded already; a new one to any."""
    steps = []
    for block in blocks('proto'):
        if 'version_labels' in block:
            steps.append(text_format.Parse(block, model_server_config_pb2.ModelConfig()))
    assert len(steps) == 3
    for model in steps:
        check_labels(model)
    for before, after in zip(steps, steps[1:]):
        loaded = before.model_version_policy.specific.versions
        for label, version in after.version_labels.items():
            assert version in loaded or label not in before.version_labels


def test_metrics_are_where_prometheus_is_told(objects, pod, flags):
    text = objects['ConfigMap', 'serving']['data']['monitoring.config']
    config = text_format.Parse(text, config_messages.MonitoringConfig())
    notes = pod['metadata']['annotations']
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == notes['prometheus.io/path']
    assert notes['prometheus.io/port'] == flags['rest_api_port']


def test_ports_probes_and_names_fit_together(objects, pod, container, flags):
    ports = {one['name']: one['containerPort'] for one in container['ports']}
    assert ports == {'grpc': int(flags['port']), 'rest': int(flags['rest_api_port'])}
    for name in ('serving', 'serving-grpc'):
        service = objects['Service', name]['spec']
        assert service['selector'].items() <= pod['metadata']['labels'].items()
        assert all(ports[one['name']] == one['port'] for one in service['ports'])
    for probe in ('startupProbe', 'readinessProbe'):
        asked = container[probe]['httpGet']
        assert asked['port'] in ports
        # Without /metadata, 200 is also the answer for a version that is loaded.
        assert asked['path'] == f'/v1/models/{export.MODEL_NAME}/labels/stable/metadata'
    for kind in ('PodDisruptionBudget', 'HorizontalPodAutoscaler', 'NetworkPolicy'):
        spec = objects[kind, 'serving']['spec']
        if kind == 'HorizontalPodAutoscaler':
            assert spec['scaleTargetRef']['name'] == 'serving'
        else:
            selector = spec.get('selector') or spec['podSelector']
            assert selector['matchLabels'].items() <= pod['metadata']['labels'].items()


def test_a_pod_that_goes_answers_what_it_was_asked(pod, container, flags):
    *_, pause = container['lifecycle']['preStop']['exec']['command']
    longest = int(flags['rest_api_timeout_in_ms']) / 1000
    assert pod['spec']['terminationGracePeriodSeconds'] > int(pause) + longest


def test_threads_are_as_many_as_the_cores_that_it_is_given(container, flags):
    cores = container['resources']['limits']['cpu']
    assert flags['tensorflow_intra_op_parallelism'] == cores
    assert flags['tensorflow_inter_op_parallelism'] == cores


def test_the_image_is_that_of_the_containers(container):
    services = yaml.safe_load((ROOT / 'docker/compose.yaml').read_text())['services']
    assert container['image'] == services['serving']['image']


def test_batching_parameters_of_the_page_are_complete(tmp_path):
    (text,) = [block for block in blocks('proto') if 'max_batch_size' in block]
    (tmp_path / 'batching.config').write_text(text)
    parameters = stock_versions.read_batching(tmp_path / 'batching.config')
    sizes = list(parameters.allowed_batch_sizes)
    # What `CreateBasicBatchingSession` asks for.
    assert sizes == sorted(set(sizes)) and sizes[-1] == parameters.max_batch_size.value
    assert parameters.num_batch_threads.value >= 1 and not parameters.pad_variable_length_inputs


def test_the_stand_in_reads_the_warm_up_that_an_export_writes():
    assert stock_versions.WARM_UP == warmup_lib.FILE_NAME
