"""What every test shares."""

import os
from collections.abc import Iterator

import pytest
import torch

from reload_server import Server
from secateur.evaluation import reload, reloading


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small take several times as long on two threads, and sums come out the same everywhere.

    So do those of the processes that tests start, which would wait for each other beside several test processes.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def reload_checks(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Has one process import transformers for the reload checks of all tests, and fork itself for each.

    Those of the tests that start secateur as a process of its own stay as they are.
    """
    server = Server(reload.__file__, tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloading, "subprocess", server)
        yield
    server.close()
