import gc
import threading
import weakref

import pytest

from utils.errors import VolumeError
from utils.prefetch import one_ahead


class Prepared:
    """Something that can be watched."""


def test_one_item_is_prepared_ahead_and_no_more_than_two_are_held():
    alive = weakref.WeakSet()
    started, most = [], []

    def prepare(item):
        started.append(item)
        made = Prepared()
        alive.add(made)
        return made

    for number, (item, ready) in enumerate(one_ahead(list("abcdef"), prepare)):
        ready.result()
        assert item == "abcdef"[number]
        # Nothing after the next one may be started, however long this one takes.
        threading.Event().wait(0.05)
        assert started == list("abcdef"[: number + 2])
        gc.collect()
        most.append(len(alive))
    assert max(most) == 2


def test_what_goes_wrong_with_an_item_is_raised_where_it_is_taken_and_the_others_go_on():
    def prepare(item):
        if item == 1:
            raise VolumeError("one is bad")
        return item * 10

    found = []
    for item, ready in one_ahead([0, 1, 2], prepare):
        if item == 1:
            with pytest.raises(VolumeError, match="one is bad"):
                ready.result()
        else:
            found.append(ready.result())
    assert found == [0, 20]


def test_no_items():
    assert list(one_ahead([], lambda item: item)) == []
