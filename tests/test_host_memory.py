"""What a step frees stays for the next one: measured by the pages that the system has to hand out."""

import os
import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from recbole_adv import host_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")

PROLOGUE = """
import resource, threading, torch
from recbole_adv.host_memory import kept
MB = 2**20
torch.set_num_threads(1)

def step(mb=40):
    torch.ones(mb * MB // 4) + 1  # two blocks

def faults(n=20, mb=40):
    for _ in range(n):  # until the heap is as large as it has to be
        step(mb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        step(mb)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / n

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MB
"""
PAGES = 40 * 2**20 // os.sysconf("SC_PAGESIZE")  # of one block; a step has two
FEW = 0.3 * PAGES  # seldom something small lies in a hole, and a block has to go elsewhere


def run(code, **environment):
    """In a process of its own, whose C library nobody has told anything."""
    told = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(told)}
    command = [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_few_pages_are_handed_out_after_the_first_steps():
    outside, unwanted, inside = run("""
        print(faults())
        with kept(False):
            print(faults())
        with kept(True):
            print(faults())
        """)
    assert min(outside, unwanted) > 0.9 * PAGES
    assert inside < FEW


def test_memory_goes_back_at_the_end_of_the_outermost_also_after_an_error():
    start, inner, outer, end = run("""
        step(1)
        print(resident())
        try:
            with kept(True):
                with kept(True):
                    step()
                print(resident())
                step(8)
                print(resident())
                raise KeyError
        except KeyError:
            pass
        print(resident())
        """)
    assert inner - start > 70 and outer - start > 70  # two blocks of 40 MB
    assert end - start < 20


def test_blocks_beyond_the_heap_of_another_thread_stay_where_there_is_one_heap():
    code = """
        found = []
        def work():
            found.append(faults(mb=80))  # a thread's heap has 64
        with kept(True):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            found.append(faults())
        print(*found)
        """
    inside, after = run(code)
    assert inside > 2 * 0.9 * PAGES
    assert after < FEW
    inside, after = run(code, MALLOC_ARENA_MAX="1")  # as in a trial of Ray
    assert inside < 2 * FEW and after < FEW


@pytest.mark.parametrize(
    "told",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_who_tells_glibc_by_the_environment_is_obeyed(told):
    code = """
    with kept(True):
        print(faults())
    """
    assert run(code, **told)[0] > 0.9 * PAGES


def test_the_key_changes_no_value_and_fit_and_evaluate_are_inside(tiny, monkeypatch):
    seen = []
    results = {}
    for wanted in (True, False):
        told = []
        monkeypatch.setattr(host_memory, "_tell", lambda library, what, t=told: t.append(what))
        run = tiny("SASRec", keep_memory=wanted, epochs=2, train_neg_sample_args=None)
        score = run.fit().best_valid_score
        result = run.trainer.evaluate(run.test)
        results[wanted] = score, result, [p.clone() for p in run.model.parameters()]
        seen.append(told)
    once = [host_memory._KEEPING, host_memory._USUAL]
    assert seen == ([once * 2, []] if host_memory._glibc() else [[], []])
    (score, result, weights), (other_score, other_result, other_weights) = results.values()
    assert score == other_score and result == other_result
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights))
