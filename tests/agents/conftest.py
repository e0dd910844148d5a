import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each():
    """Tiny models gain nothing from threads, and test processes run side by side."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
