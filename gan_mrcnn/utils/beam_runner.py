# SPDX-License-Identifier: Apache-2.0
"""Work that Apache Beam spreads over processes or machines: one function, called once per job.

Beam is told as little as can be: a list of jobs, and a function that does one of them and leaves
its result on a disk that all workers share. A job may be done twice, or twice at a time: runners
repeat what they lost. So the function has to leave the same whole files each time
(`files.named_when_whole`).

Beam's local runner, DirectRunner, repeats nothing, and waits without end for a worker process that
was killed. Here such a death ends the run with one line, and the same command goes on.

Imports nothing heavy, and Beam where it is needed: the command line asks for the runners' names.
"""

import argparse
import contextlib
import functools
import io
import logging
import os
import pathlib
import pickle
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gan_mrcnn.utils import cli
from gan_mrcnn.utils.cores import num_cores
from gan_mrcnn.utils.errors import UnfinishedError, UserError

DIRECT = 'DirectRunner'
RUNNERS = (DIRECT, 'FlinkRunner', 'SparkRunner', 'DataflowRunner', 'PortableRunner')
# Those whose job server may know flags that Beam for Python does not, and the flag that names the
# job server's file. Without it Beam would download one.
_JOB_SERVERS = {'FlinkRunner': 'flink_job_server_jar', 'SparkRunner': 'spark_job_server_jar'}
_PORTABLE = (*_JOB_SERVERS, 'PortableRunner')
# What a thread of Beam's raises when the worker process that it has started ended by itself.
_WORKER_ENDED = 'Worker subprocess exited'
# Its end where that was SIGKILL, to the process itself or to the shell that Beam starts it in.
_KILLED = (' -9', ' 137')
_GRACE_SECONDS = 5
_WORKER_MODULE = 'apache_beam.runners.worker.sdk_worker_main'
# Namespace of the metrics that bring what jobs have raised to this process.
_ERRORS = 'gan_mrcnn.errors'


class Runner(NamedTuple):
    """Where to run, checked.

    name: one of `RUNNERS`.
    flags: Beam's own, as its `PipelineOptions` read them.
    """

    name: str
    flags: tuple[str, ...]


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --runner. The command has to set FORWARDS_FLAGS, for Beam's own flags."""
    parser.add_argument(
        '--runner',
        choices=RUNNERS,
        help='Apache Beam does the work on this runner, on a disk that all workers share; flags '
        'that are not listed go to Beam, see docs/data/records.md (default: this machine alone)',
    )


def from_options(options: argparse.Namespace) -> Optional[Runner]:
    """What --runner and the flags that were not known say; None without --runner.

    Raises:
      UserError: see `from_flags`; or there is no runner to take the flags.
    """
    if options.runner:
        return from_flags(options.runner, options.forwarded)
    if options.forwarded:
        raise UserError(f'{options.forwarded[0]} is no flag of this command without --runner')
    return None


def from_flags(name: str, flags: Sequence[str]) -> Runner:
    """The runner `name` with Beam's own `flags`; DirectRunner gets a worker process per core.

    Raises:
      UserError: Beam is not installed, a flag is unknown or cannot have its value, or the runner
        would have to download its job server.
    """
    cli.check_extra('beam', 'apache_beam')
    defaults = []
    if name == DIRECT:
        defaults = ['--direct_running_mode=multi_processing', f'--direct_num_workers={num_cores()}']
        # DirectRunner would try another first, Prism, and download it. That one is not tried where
        # a pipeline may have triggers that lose data; ours have no triggers.
        defaults.append('--allow_unsafe_triggers')
    runner = Runner(name, (f'--runner={name}', *defaults, *flags))
    known, unknown = _parse(runner)
    if unknown and name not in _PORTABLE:
        raise UserError(f'{unknown[0]} is no flag of this command, nor of Apache Beam')
    jar = _JOB_SERVERS.get(name)
    if jar and not (known['job_endpoint'] or known[jar]):
        raise UserError(
            f'{name} wants a job server: give --{jar} FILE, or --job_endpoint of a running one'
        )
    return runner


def run(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    runner: Runner,
    every_second: Optional[Callable[[], Any]] = None,
) -> None:
    """Calls `function` with each of `jobs` on the runner's workers, and waits for the end.

    Args:
      function: of a module, or a `functools.partial` of one; picklable. A UserError that it raises
        is kept, and the other jobs are done. Whatever else it raises, runners take for a failure
        of the worker, and may repeat the job.
      jobs: picklable, each for itself.
      runner: as `from_flags` has made it.
      every_second: called by a thread of this process meanwhile, to show how far it is.

    Raises:
      UserError: what a job has raised, of several the first.
      UnfinishedError: the runner failed or gave up, or a worker of DirectRunner was killed.
    """

    def build(pipeline) -> None:
        import apache_beam as beam

        # Pickled here: Beam has ideas of its own about how a named tuple travels.
        pickled = [pickle.dumps((number, job)) for number, job in enumerate(jobs)]
        call = functools.partial(_call, function)
        _ = pipeline | 'jobs' >> beam.Create(pickled) | 'do' >> beam.Map(call)

    errors = _user_errors(run_pipeline(build, runner, every_second))
    if errors:
        others = f' (and {len(errors) - 1} more)' if len(errors) > 1 else ''
        raise UserError(f'{errors[0]}{others}')


def run_pipeline(
    build: Callable[[Any], None],
    runner: Runner,
    every_second: Optional[Callable[[], Any]] = None,
):
    """Runs a pipeline of several steps, and waits for the end.

    Args:
      build: puts the steps into an empty `apache_beam.Pipeline`.
      runner: as `from_flags` has made it.
      every_second: see `run`.

    Returns:
      Beam's `PipelineResult`.

    Raises:
      UnfinishedError: see `run`.
    """
    with _silenced(), _failures_named(runner) as log, _errors_to(log), _ticking(every_second):
        import apache_beam as beam

        pipeline = beam.Pipeline(options=_options(runner))
        build(pipeline)
        return _run_local(pipeline) if runner.name == DIRECT else _run_remote(pipeline)


def _call(function: Callable[[Any], Any], pickled: bytes) -> None:
    """Does one job, in a worker."""
    from apache_beam.metrics import Metrics

    number, job = pickle.loads(pickled)
    try:
        function(job)
    except UserError as error:
        # Raised, it would be printed with its stack trace, and repeated by some runners. Each has
        # a name of its own: of one name, DirectRunner keeps what one of its workers says.
        Metrics.string_set(_ERRORS, f'{number:012}').add(str(error))


def _user_errors(result) -> list[str]:
    """What jobs have raised, in the order of the jobs."""
    from apache_beam.metrics import MetricsFilter

    found = result.metrics().query(MetricsFilter().with_namespace(_ERRORS))
    metrics = sorted(found['string_sets'], key=lambda metric: metric.key.metric.name)
    return list(dict.fromkeys(text for metric in metrics for text in metric.result))


def _options(runner: Runner):
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(list(runner.flags))


def _parse(runner: Runner) -> tuple[dict[str, Any], list[str]]:
    """Options that Beam knows, and the flags that it does not."""
    said = io.StringIO()
    # Beam does that, too, and messages of all libraries would go to where `said` is.
    logging.basicConfig()
    try:
        with _silenced(), contextlib.redirect_stderr(said):
            options = _options(runner)
            known = options.get_all_options()
            every = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        # argparse: all of Beam's flags, and in the last line what is wrong.
        reason = said.getvalue().strip().rpartition('error: ')[2]
        raise UserError(f'Apache Beam: {reason}') from None
    return known, [f'--{name}' for name in every if name not in known]


def _run_remote(pipeline):
    result = pipeline.run()
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            result.cancel()
        raise
    return result


def _run_local(pipeline):
    """Runs in a thread, which is left alone where a worker process has died: it may never end."""
    before = _worker_processes()
    results: list[Any] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def run_it() -> None:
        try:
            result = pipeline.run()
            result.wait_until_finish()
            results.append(result)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run_it, daemon=True)
    with _worker_deaths(ended) as deaths:
        try:
            thread.start()
            ended.wait()
            # At the very end, a worker that does not end well has done its work.
            thread.join(_GRACE_SECONDS)
        finally:
            if thread.is_alive():
                # Threads of Beam that this process would wait for at its end wait for these.
                for process in _worker_processes() - before:
                    with contextlib.suppress(Exception):
                        process.kill()
    if results:
        return results[0]
    if any(text.endswith(_KILLED) for text in deaths):
        raise UnfinishedError(
            'a worker process of DirectRunner was killed, most likely for lack of memory; the same '
            'command goes on with what is missing'
        )
    raise RuntimeError(deaths[0]) if deaths else errors[0]


def _worker_processes() -> set:
    """Worker processes of Beam that this process has started, and the shells that they run in."""
    import psutil

    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _WORKER_MODULE in ' '.join(process.cmdline()):
                found.add(process)
    return found


@contextlib.contextmanager
def _worker_deaths(ended: threading.Event) -> Iterator[list[str]]:
    """Sets `ended` where a worker process ends by itself; yields what has been said of that.

    Beam's thread that waits for the process raises, and nobody listens. What other threads raise
    when the lines to that process break is of no interest then.
    """
    deaths: list[str] = []
    hook = threading.excepthook

    def note(args) -> None:
        if args.exc_value is not None and _WORKER_ENDED in str(args.exc_value):
            deaths.append(str(args.exc_value))
            ended.set()
        elif not deaths and not type(args.exc_value).__module__.startswith('grpc'):
            hook(args)

    threading.excepthook = note
    yield deaths
    # It stays where a worker has died, or Ctrl-C came: threads of a broken run may still raise.
    if not deaths:
        threading.excepthook = hook


@contextlib.contextmanager
def _failures_named(runner: Runner) -> Iterator[pathlib.Path]:
    """Turns what Beam raises into one line; yields a file that is kept, and named in it, then."""
    descriptor, name = tempfile.mkstemp(prefix='gan_mrcnn.beam.', suffix='.log')
    os.close(descriptor)
    log = pathlib.Path(name)
    is_kept = False
    try:
        yield log
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        is_kept = True
        with open(log, 'a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(traceback.format_exc())
        # What a worker raised comes as text, its stack trace first.
        said = ''.join(traceback.format_exception_only(type(error), error))
        reason = said.strip().splitlines()[-1].strip()
        raise UnfinishedError(
            f'Apache Beam on {runner.name} failed ({reason}); what it said is in {log}; the same '
            'command goes on with what is missing'
        ) from error
    finally:
        if not is_kept:
            log.unlink()


@contextlib.contextmanager
def _errors_to(log: pathlib.Path) -> Iterator[None]:
    """Sends what processes that are started in here write to standard error to a file.

    Workers print what Beam does and, of every failure, the stack trace. This process goes on to
    write where it did.
    """
    stream = sys.stderr
    stream.flush()
    with (
        open(os.dup(2), 'w', errors='backslashreplace', buffering=1) as ours,
        open(log, 'a') as file,
    ):
        os.dup2(file.fileno(), 2)
        if _writes_to_terminal(stream):
            sys.stderr = ours
        try:
            yield
        finally:
            os.dup2(ours.fileno(), 2)
            sys.stderr = stream


def _writes_to_terminal(stream) -> bool:
    """Whether a stream writes to the descriptor of standard error."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _ticking(call: Optional[Callable[[], Any]]) -> Iterator[None]:
    """Calls `call` about every second, and once more at the end."""
    if call is None:
        yield
        return
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(1):
            call()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        call()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Beam logs which of its extras are missing, and every error with its stack trace."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
