"""The pages: links, commands, flags and defaults are those of the code."""

import argparse
import functools
import importlib
import pathlib
import re
import shlex
import subprocess
import sys
import urllib.parse

import pytest
import yaml

import gan_mrcnn
from gan_mrcnn import __main__ as program

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DOCS = _ROOT / 'docs'
_PAGES = sorted([*_ROOT.glob('*.md'), *_DOCS.rglob('*.md')])
# Pages on which every flag of a command is to be found, together.
_FLAG_PAGES = {
    'train': ('training.md', 'data/README.md', 'data/coco_format.md', 'data/label_images.md'),
    'evaluate': ('evaluation.md', 'data/README.md', 'data/coco_format.md', 'data/label_images.md'),
    'predict': ('predicting.md', 'slides.md'),
}


def _name(page):
    return str(page.relative_to(_ROOT))


def _without_code(text):
    """Lines of `text` without comments, code blocks, and what single backquotes hold."""
    text = re.sub(r'<!--.*?-->', '', text, flags=re.DOTALL)
    text = re.sub(r'^ *```.*?^ *```', '', text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'(?<=\n\n)(?: {4}.*\n|\n)+', '\n', text)
    return re.sub(r'`[^`]*`', '', text)


def _anchors(page):
    """As GitHub makes them, and the site (mkdocs.yml)."""
    text = re.sub(r'^ *```.*?^ *```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE):
        heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
        found.append(re.sub(r'[^\w\- ]', '', heading).replace(' ', '-'))
    return found


def _links(page):
    return re.findall(r'\]\(([^)\s]+)\)', _without_code(page.read_text()))


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    dead = []
    for link in _links(page):
        path, _, anchor = urllib.parse.unquote(link).partition('#')
        if re.match(r'\w+:', link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize('page', sorted(_DOCS.rglob('*.md')), ids=_name)
def test_a_page_of_the_site_links_to_files_of_the_site_alone(page):
    leaving = [
        link
        for link in _links(page)
        if not re.match(r'\w+:|#', link)
        and _DOCS not in (page.parent / link.partition('#')[0]).resolve().parents
    ]
    assert not leaving


def test_every_page_is_in_the_contents_of_the_site():
    listed = re.findall(r'^ +- .*: (\S+\.md)$', (_ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    pages = {page.relative_to(_DOCS).as_posix() for page in _DOCS.rglob('*.md')}
    assert sorted(listed) == sorted(pages | {'index.md', 'CHANGELOG.md', 'CONTRIBUTING.md'})


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_lists_tables_and_code_are_the_same_on_github_and_in_the_site(page):
    reason = "the extra 'docs' is not installed"
    github = pytest.importorskip('markdown_it', reason=reason)
    site = pytest.importorskip('markdown', reason=reason)
    pytest.importorskip('pymdownx', reason=reason)
    text = page.read_text()
    extensions = ['tables', 'toc', 'pymdownx.superfences']
    pages = (
        github.MarkdownIt('commonmark').enable('table').render(text),
        site.markdown(text, extensions=extensions),
    )
    counts = [
        {tag: len(re.findall(f'<{tag}[ >]', html)) for tag in ('li', 'ul', 'ol', 'table', 'pre')}
        for html in pages
    ]
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_the_site_is_made_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip('mkdocstrings', reason="the extra 'docs' is not installed")
    command = [sys.executable, '-m', 'mkdocs', 'build', '-q', '--strict', '-d', str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob('*.html'))
    assert len(pages) > len(_PAGES)
    loaded = {
        address
        for page in pages
        for address in re.findall(
            r'<(?:script|link|img|source|iframe)\b[^>]*?(?:src|href)="([^"]*)"', page.read_text()
        )
    }
    assert len(loaded) > 10
    styles = [address for sheet in tmp_path.rglob('*.css') for address in _addresses(sheet)]
    assert not [one for one in [*loaded, *styles] if re.match(r'\w+:(?!.*;base64)|//', one)]


def _addresses(sheet):
    return re.findall(r'url\(["\']?([^)"\']*)', sheet.read_text())


def _own_flags(name):
    command = importlib.import_module(f'gan_mrcnn.commands.{name}')
    parser = argparse.ArgumentParser(add_help=False)
    command.add_flags(parser)
    return set(re.findall(r'--\w+', parser.format_usage()))


def _flags(name):
    """With those that the command hands on."""
    command, flags = importlib.import_module(f'gan_mrcnn.commands.{name}'), _own_flags(name)
    if '--runner' in flags:
        return flags | _flags_of_beam()
    return flags | _flags('train') if getattr(command, 'FORWARDS_FLAGS', False) else flags


@functools.lru_cache
def _flags_of_beam():
    reason = "the extra 'beam' is not installed"
    options = pytest.importorskip('apache_beam.options.pipeline_options', reason=reason)
    return {f'--{name}' for name in options.PipelineOptions([]).get_all_options()}


def _commands(page):
    """Commands of ours in code blocks: their word and the flags that are given."""
    text = page.read_text().replace('\\\n', ' ')
    for line in re.findall(r'^ *!?((?:gan-mrcnn|python \w+\.py) .*)$', text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        name = words[1] if words[0] == 'gan-mrcnn' else words[1].replace('.py', '')
        if name in program.COMMANDS:
            yield name, {word.partition('=')[0] for word in words if re.match(r'--\w', word)}


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_commands_have_flags_that_there_are(page):
    unknown = {
        f'{name} {flag}'
        for name, given in _commands(page)
        for flag in given - _flags(name) - {'--help'}
    }
    assert not unknown


def test_commands_are_found_on_the_pages():
    assert {name for page in _PAGES for name, _ in _commands(page)} == set(program.COMMANDS)


@pytest.mark.parametrize('name', _FLAG_PAGES)
def test_every_flag_of_a_command_is_on_its_pages(name):
    text = ' '.join((_DOCS / page).read_text() for page in _FLAG_PAGES[name])
    assert not _own_flags(name) - set(re.findall(r'--\w+', text)) - {'--dataset'}


def test_the_table_of_commands_is_that_of_the_help():
    rows = re.findall(r'^\| `(\w+)` \| (.*?) \|', (_DOCS / 'commands.md').read_text(), re.MULTILINE)
    assert {name: text for name, text in rows if name in program.COMMANDS} == program.COMMANDS


def _settings_rows():
    """Of the table of keys: the keys of a row, its default and gland.yaml's value, as text."""
    text = (_DOCS / 'settings.md').read_text()
    table = text[text.index('| key | default |') :].split('\n\n')[0]
    for line in table.splitlines()[2:]:
        keys, default, gland = line.split('|')[1:4]
        keys = re.findall(r'`([^`]+)`', keys.replace('...', 'trainer.optimizer_config.'))
        yield keys, default.strip(), gland.strip()


def _value(config, key):
    return functools.reduce(getattr, key.split('.'), config)


def test_values_in_the_table_of_settings_are_those_of_the_code():
    from official.core import exp_factory

    from gan_mrcnn import configs, settings

    default = exp_factory.get_exp_config(configs.EXPERIMENT)
    gland = exp_factory.get_exp_config(configs.EXPERIMENT)
    settings.override(gland, settings.read(_ROOT / 'configs/gland.yaml'), 'gland.yaml')
    wrong = [
        f'{key}: {text}'
        for keys, *cells in _settings_rows()
        for key in keys
        for text, config in zip(cells, (default, gland))
        if text.startswith('`') and yaml.safe_load(text.strip('`')) != _value(config, key)
    ]
    assert not wrong


def test_the_settings_page_names_every_file_of_configs():
    text = (_DOCS / 'settings.md').read_text()
    files = {path.name for path in (_ROOT / 'configs').glob('*.yaml')}
    assert files <= set(re.findall(r'`(\w+\.yaml)`', text))


def test_the_citation_is_the_same_in_both_places():
    readme = (_ROOT / 'README.md').read_text()
    citation = yaml.safe_load((_ROOT / 'CITATION.cff').read_text())
    paper = citation['preferred-citation']
    assert citation['version'] == gan_mrcnn.__version__
    for field in (paper['title'], paper['journal'], str(paper['year'])):
        assert f'{{{field}}}' in readme
    names = ' and '.join(f'{a["family-names"]}, {a["given-names"]}' for a in paper['authors'])
    assert f'{{{names}}}' in readme
