"""Messages of TF Serving's files that `tensorflow-serving-api` leaves out.

That package has those of `models.config` (`model_server_config_pb2`). Names, numbers and types here
are those of TF Serving's session_bundle_config.proto and monitoring_config.proto.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_INT64 = '.google.protobuf.Int64Value'
_FIELD = descriptor_pb2.FieldDescriptorProto
_MESSAGES = {
    'BatchingParameters': [
        ('max_batch_size', 1, _INT64),
        ('batch_timeout_micros', 2, _INT64),
        ('max_enqueued_batches', 3, _INT64),
        ('num_batch_threads', 4, _INT64),
        ('thread_pool_name', 5, '.google.protobuf.StringValue'),
        ('allowed_batch_sizes', 6, _FIELD.TYPE_INT64),
        ('pad_variable_length_inputs', 7, _FIELD.TYPE_BOOL),
        ('enable_large_batch_splitting', 8, '.google.protobuf.BoolValue'),
        ('max_execution_batch_size', 9, _INT64),
    ],
    'PrometheusConfig': [('enable', 1, _FIELD.TYPE_BOOL), ('path', 2, _FIELD.TYPE_STRING)],
    'MonitoringConfig': [('prometheus_config', 1, '.tensorflow.serving.PrometheusConfig')],
}


def _make():
    """Name -> class. In a pool of its own: a later release may bring the originals."""
    file = descriptor_pb2.FileDescriptorProto(
        name='config_messages.proto',
        package='tensorflow.serving',
        syntax='proto3',
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            repeated = field == 'allowed_batch_sizes'
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, kind
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f'tensorflow.serving.{name}')
        )
        for name in _MESSAGES
    }


BatchingParameters, PrometheusConfig, MonitoringConfig = _make().values()
