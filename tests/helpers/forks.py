"""Something done in a forked process, or in two threads."""

import os
import pickle

import pytest

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_a_fork(function):
    """What a function returns, or the error that it raises, in a process forked now."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            try:
                answer = function()
            except BaseException as wrong:
                answer = wrong
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(process, 0)
    return answer
