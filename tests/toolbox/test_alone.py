"""Helpers are taken from one thread and from no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lib_trainer.toolbox.alone import alone


def in_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_only_this_thread_is_without_helpers() -> None:
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
            with pytest.raises(ZeroDivisionError), alone():
                assert torch.get_num_threads() == 1 and in_a_new_thread() == 3
                assert pool.submit(torch.get_num_threads).result() == 3
                raise ZeroDivisionError
            assert torch.get_num_threads() == 3 and in_a_new_thread() == 3
    finally:
        torch.set_num_threads(own)
