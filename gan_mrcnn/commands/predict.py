# SPDX-License-Identifier: Apache-2.0
"""Predicts the objects in image files: gan-mrcnn predict --model MODEL IMAGES... --out DIR.

IMAGES are files, folders (with all below) and patterns in quotes. MODEL is a SavedModel that
gan-mrcnn export wrote (OUT/model or OUT/model/1), an ONNX file of it (OUT/model.onnx), or the
folder of a run; --weights takes what gan-mrcnn publish wrote. DIR gets overlays/, labels/,
objects.csv and predictions.json (COCO format).

Whole slides (.svs, .ndpi, .mrxs, pyramids in TIFF, and others) are predicted in tiles, each into
DIR/NAME/: objects.geojson for QuPath, objects.csv and overview.png. A stopped run goes on with the
same command. Needs the extra slides: pip install 'gan-mrcnn[slides]'.

With --runner Apache Beam spreads the work over processes or machines that share a disk; flags that
are not listed then go to Beam. Needs the extra beam: pip install 'gan-mrcnn[beam]'.
"""

import argparse

from gan_mrcnn.utils import beam_runner, cli

FORWARDS_FLAGS = True
TISSUE = ('auto', 'off')
STOPPED = 'stopped; of slides all finished rows are kept, the same command goes on from there'


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'images', nargs='+', metavar='IMAGES', help='files, folders or patterns')
    cli.add_path(parser, '--model', help='a SavedModel, an ONNX file, or the folder of a run')
    cli.add_weights_flag(parser, 'in place of --model', dest='published')
    cli.add_path(parser, '--out', required=True, metavar='DIR', help='folder of the results')
    cli.add_checkpoint_flag(parser)
    cli.add_path(parser, '--data_dir', help='of a run: where its data set is, if it was moved')
    cli.add_cache_flag(parser)
    parser.add_argument(
        '--score_threshold',
        type=float,
        metavar='SCORE',
        help="objects with a lower score are dropped (default: the model's)",
    )
    cli.add_tta_flag(parser)
    parser.add_argument(
        '--batch', type=int, default=4, metavar='N', help='images at a time (default 4)'
    )
    cli.add_tile_flags(parser)
    parser.add_argument(
        '--mpp',
        type=float,
        metavar='UM',
        help='for slides: micrometres per pixel of the training images (default: what the model '
        'says)',
    )
    parser.add_argument(
        '--slide_mpp',
        type=float,
        metavar='UM',
        help='for slides: micrometres per pixel of level 0 (default: what the file says)',
    )
    parser.add_argument(
        '--tissue',
        choices=TISSUE,
        default=TISSUE[0],
        help='for slides: auto (default) leaves out tiles without tissue, off predicts all',
    )
    beam_runner.add_flag(parser)


def main(options: argparse.Namespace) -> None:
    cli.check_one_model(options, '--model')
    cli.check_score(options.score_threshold)
    cli.check_positive(options.batch, '--batch')
    runner = beam_runner.from_options(options)
    from gan_mrcnn.prediction import image_files, slide_run, slides, tiles, writing
    from gan_mrcnn.prediction import run as prediction_run
    from gan_mrcnn.utils import devices

    overlap = tiles.check(options.tile, options.overlap) if options.tile else 0
    # Before the network, which takes its time: a wrong path is answered at once.
    left_out: list[str] = []
    sources = image_files.find_sources(options.images, options.out, left_out)
    for text in left_out:
        print(f'left out: {cli.one_line(text)}; name a file by itself to predict it')
    kinds = [slides.is_slide(source.path) for source in sources]
    whole_slides = [source for source, is_slide in zip(sources, kinds) if is_slide]
    pictures = [source for source, is_slide in zip(sources, kinds) if not is_slide]
    if pictures:
        writing.prepare_folder(options.out)
    if runner:
        from gan_mrcnn.prediction import beam_run

        model, chosen = _model(options)
        beam_run.predict(pictures, whole_slides, model, options.out, chosen, runner)
        return
    problems: list[str] = []
    usable = slide_run.usable(whole_slides, options.slide_mpp, problems) if whole_slides else []
    if not usable and not pictures:
        slide_run.stop_at(problems, len(whole_slides))
    model, chosen = _model(options)
    network = prediction_run.load(*model)
    print(f'devices: {devices.describe()}', flush=True)
    if usable:
        slide_run.predict(usable, network, options.out, chosen, problems)
    if pictures:
        prediction_run.predict(
            pictures,
            network,
            options.out,
            options.score_threshold,
            options.batch,
            options.tile,
            overlap,
        )
    slide_run.stop_at(problems, len(whole_slides))


def _model(options: argparse.Namespace):
    """The arguments of `prediction.run.load`, and how slides are predicted with it."""
    from gan_mrcnn.prediction import slide_plan
    from gan_mrcnn.utils import published

    path = published.find(options.published, options.cache_dir) if options.published else None
    chosen = slide_plan.Options(
        model=path or options.model,
        tta=options.tta,
        score_threshold=options.score_threshold,
        batch_size=options.batch,
        tile=options.tile,
        overlap=options.overlap,
        mpp=options.mpp,
        slide_mpp=options.slide_mpp,
        finds_tissue=options.tissue != 'off',
    )
    return (options.model, options.checkpoint, options.data_dir, path, options.tta), chosen
