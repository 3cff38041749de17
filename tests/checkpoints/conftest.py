import pytest
from authors_checkpoints import TINY_ROWS

from sepc_zoo.published import PUBLISHED


@pytest.fixture(scope="module")
def tiny_rows():
    """Tiny models among the published ones, with the conventions of the SEPC authors."""
    with pytest.MonkeyPatch.context() as patch:
        for row in TINY_ROWS:
            patch.setitem(PUBLISHED, row.name, row)
        yield
