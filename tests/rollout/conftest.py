import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Models of this size run faster on one thread, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
