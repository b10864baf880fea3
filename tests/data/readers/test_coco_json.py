"""Annotation files in COCO's format: what is not one is named in one line."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.data.readers import coco_json
from gan_mrcnn.utils.errors import UserError
from tests.any_json import anything


@settings(deadline=None, derandomize=True, max_examples=200)
@given(data=st.data())
def test_no_file_ends_with_a_stack_trace(data, tmp_path_factory):
    entry = lambda **good: st.fixed_dictionaries(  # noqa: E731
        {}, optional={key: st.just(value) | anything for key, value in good.items()}
    )
    some = lambda entries: st.lists(entries, max_size=3) | anything  # noqa: E731
    content = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                'images': some(entry(id=1, file_name='a.png', width=20, height=10)),
                'annotations': some(entry(id=1, image_id=1)),
                'categories': some(entry(id=1, name='cell')),
            },
        )
    )
    path = tmp_path_factory.mktemp('any') / 'any.json'
    path.write_text(json.dumps(content))
    try:
        coco_json.read_file(path)
    except UserError as error:
        assert str(path) in str(error) and '\n' not in str(error)
