# SPDX-License-Identifier: Apache-2.0
"""Work on images spread over processes: what pycocotools does is Python loops, one core each."""

import collections
import concurrent.futures
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import process
from typing import Any, Callable, Optional

from gan_mrcnn.utils import progress_bar
from gan_mrcnn.utils.cores import num_cores
from gan_mrcnn.utils.errors import UserError

# Images in a job: enough to be worth sending, few enough that the bar moves.
CHUNK = 50
# Below this many predictions, starting processes takes longer than the work.
FEW = 4000


def by_image(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """COCO annotations or results by image id, each in the order given."""
    found = collections.defaultdict(list)
    for entry in entries:
        found[entry['image_id']].append(entry)
    return found


def map_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    sizes: Sequence[int],
    title: str,
    num_processes: Optional[int] = None,
) -> list[Any]:
    """`function` of every job, in order, with a progress bar over `sizes` (images of each job).

    Args:
      function: of a module's top level, so that processes can find it. Its module should not
        import TensorFlow, which every process would pay for.
      jobs: its arguments, picklable.
      sizes: images in each job.
      title: of the bar; '' for none.
      num_processes: at most; None for as many as there are cores, 1 for this process.

    Raises:
      UserError: a process was killed, most likely for lack of memory.
    """
    num_processes = min(num_processes or num_cores(), len(jobs))
    with progress_bar.Bar(total=sum(sizes), desc=title, unit='image', disable=not title) as bar:
        if num_processes <= 1:
            results = []
            for job, size in zip(jobs, sizes):
                results.append(function(job))
                bar.update(size)
            return results
        # Not forked: TensorFlow's threads do not survive that.
        context = multiprocessing.get_context('spawn')
        try:
            with concurrent.futures.ProcessPoolExecutor(num_processes, context) as pool:
                results = []
                for size, result in zip(sizes, pool.map(function, jobs)):
                    results.append(result)
                    bar.update(size)
                return results
        except process.BrokenProcessPool as error:
            raise UserError(
                'a process that compares masks was killed, most likely for lack of memory; end '
                'other programs, or take a machine with more'
            ) from error
