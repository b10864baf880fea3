# SPDX-License-Identifier: Apache-2.0
"""Device time by operation, from the profile that TensorFlow's profiler has saved.

The profile is an XSpace (`*.xplane.pb`): planes of devices, their lines (one per CUDA stream), and
on them events, one per kernel or copy, with the TensorFlow operation that launched it. TensorFlow
ships the message's class without calling it public; nothing public reads the file without another
package (tensorboard-plugin-profile). It is imported when a profile is read, so that a TensorFlow
without it loses this summary and no more.
"""

import collections
import pathlib

MOST = 25
# Statistics of an event that name its operation, best first: 'scope/name:Type'.
_NAMES = ('tf_op', 'kernel_annotation', 'annotation')


def summarize(folder, steps):
    """Figures of the newest profile under `folder`.

    Args:
      folder: what `tf.profiler.experimental.start` was given.
      steps: training steps in the profile; times are per step.

    Returns:
      Per device: `milliseconds_per_step` between the first and the last event, `idle_share` of it
      in which no stream had work, and the `MOST` expensive operations, types of operations and
      kernels as [name, milliseconds per step, launches per step].

    Raises:
      FileNotFoundError: there is no profile.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    files = sorted(pathlib.Path(folder).glob('**/*.xplane.pb'))
    if not files:
        raise FileNotFoundError(f'{folder} holds no *.xplane.pb')
    space = xplane_pb2.XSpace.FromString(files[-1].read_bytes())
    devices = [plane for plane in space.planes if plane.name.startswith('/device:')]
    return {plane.name: _summarize_plane(plane, steps) for plane in devices if plane.lines}


def _summarize_plane(plane, steps):
    totals = {name: collections.Counter() for name in ('operations', 'types', 'kernels')}
    launches = {name: collections.Counter() for name in totals}
    intervals = []
    for line in plane.lines:
        if not line.name.startswith('Stream'):
            continue  # Lines that are derived from those of the streams would count twice.
        for event in line.events:
            start = line.timestamp_ns * 1000 + event.offset_ps
            intervals.append((start, start + event.duration_ps))
            for name, value in _names(plane, event).items():
                totals[name][value] += event.duration_ps
                launches[name][value] += 1
    span, busy = _span_and_busy(intervals)
    return {
        'milliseconds_per_step': span / 1e9 / steps,
        'idle_share': 1 - busy / span if span else None,
        'events_per_step': len(intervals) / steps,
        **{
            name: [
                [value, round(total / 1e9 / steps, 4), launches[name][value] / steps]
                for value, total in counter.most_common(MOST)
            ]
            for name, counter in totals.items()
        },
    }


def _names(plane, event):
    """The event's operation, its type and its kernel."""
    kernel = plane.event_metadata[event.metadata_id].name
    stats = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
    operation = next((_text(plane, stats[name]) for name in _NAMES if name in stats), '')
    operation = operation or f':{kernel}'
    name, _, kind = operation.rpartition(':')
    return {'operations': name or kind, 'types': kind, 'kernels': kernel}


def _text(plane, stat):
    """A statistic's string, which may stand among the plane's names."""
    if stat.WhichOneof('value') == 'ref_value':
        return plane.stat_metadata[stat.ref_value].name
    return stat.str_value


def _span_and_busy(intervals):
    """From the first start to the last end, and how much of it any interval covers."""
    if not intervals:
        return 0, 0
    intervals.sort()
    busy, covered = 0, intervals[0][0]
    for start, end in intervals:
        busy += max(0, end - max(start, covered))
        covered = max(covered, end)
    return covered - intervals[0][0], busy
