import pytest
from harness import new_plans


@pytest.fixture
def nothing_planned():
    """Nor any gradient made that nobody has asked for."""
    with new_plans():
        yield
