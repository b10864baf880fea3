"""Whatever JSON can hold, for tests of files that others wrote."""

from hypothesis import strategies as st

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 60)
    | st.sampled_from([1e300, float('nan'), float('inf'), 10**20, 0.5, 20.0])
    | st.sampled_from(['', 'o', '3b1', 'size', 'é']),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(['size', 'counts', 'id', 'name']), inner, max_size=3)
    ),
    max_leaves=12,
)
