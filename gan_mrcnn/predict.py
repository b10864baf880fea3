# SPDX-License-Identifier: Apache-2.0
"""Looks at pictures: `python -m gan_mrcnn.predict --model OUT/model IMAGES... --out DIR`.

IMAGES are files, folders and patterns in quotes. `--model` is a SavedModel of
`gan_mrcnn.serving.export`, or the folder of a run.
"""

import argparse
import pathlib

from gan_mrcnn import bars
from gan_mrcnn import flags as flags_lib
from gan_mrcnn.errors import UserError


def parse_flags() -> argparse.Namespace:
    """Flags, before TensorFlow is imported: --help and mistakes answer at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders, patterns')
    parser.add_argument('--model', required=True, help='a SavedModel, or the folder of a run')
    parser.add_argument('--out', required=True, help='results go there, see docs/serving.md')
    parser.add_argument(
        '--checkpoint', default='best', help="of a run: 'best', 'last' or a path (default: best)"
    )
    parser.add_argument('--data_dir', help='of a run: where its data set is now')
    parser.add_argument(
        '--score_threshold', type=float, help="fainter objects are left out (default: the model's)"
    )
    parser.add_argument('--batch', type=int, default=4, help='pictures at a time (default 4)')
    parser.add_argument(
        '--tile',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='larger pictures are looked at in tiles of this size, in pixels; take the size of the '
        'pictures that were trained on',
    )
    parser.add_argument(
        '--overlap', type=int, help='of neighbouring tiles, in pixels (default: a quarter of one)'
    )
    options = parser.parse_args()
    if options.batch < 1:
        raise UserError(f'--batch {options.batch} is too few; 1 is the least')
    if options.tile and min(options.tile) < 1:
        raise UserError(f'--tile {options.tile[0]} {options.tile[1]} is no size in pixels')
    if options.tile and options.overlap is None:
        options.overlap = min(options.tile) // 4
    if options.tile and not 0 <= options.overlap < min(options.tile):
        raise UserError(f'--overlap {options.overlap} does not fit into a tile')
    return options


def main() -> None:
    options = parse_flags()

    from gan_mrcnn.predicting import pictures, writing
    from gan_mrcnn.serving import predictor as predictor_lib

    sources = pictures.find_sources(options.images)
    if (pathlib.Path(options.model) / 'params.yaml').is_file():
        predictor = predictor_lib.load_checkpoint(
            options.model, options.checkpoint, options.data_dir
        )
    else:
        predictor = predictor_lib.load_saved_model(options.model)
    threshold = options.score_threshold
    threshold = predictor.about.score_threshold if threshold is None else threshold
    problems: list[str] = []
    writer = writing.Writer(options.out, predictor.about)
    num_objects = 0
    try:
        with bars.Bar(total=len(sources), desc='predict', unit='image') as bar:
            for result in pictures.detect(
                sources,
                predictor,
                threshold,
                options.batch,
                options.tile,
                options.overlap,
                problems,
            ):
                writer.add(result)
                num_objects += len(result.objects)
                bar.update()
    finally:
        writer.close()
    print(
        f'{num_objects} objects of at least {threshold:g} in {len(sources) - len(problems)} '
        f'pictures; wrote {options.out}'
    )
    if problems:
        print('\n'.join(problems))
        raise UserError(f'{len(problems)} of {len(sources)} pictures are left out, see above')


if __name__ == '__main__':
    flags_lib.run_main(main, 'stopped')
