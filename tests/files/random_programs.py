"""Valid programs at random, and what a call of them really takes: for the property that the bound stated before a run holds."""

import json
import random
import time

import torch
from torch.profiler import ProfilerActivity, profile

from diffnb.files.operations import OPERATIONS, Program, ProgramError, result_of, signature

FACTS = {"n_steps_default": 10, "default_grid": None, "order": 1, "is_stochastic": True, "n_history": 0}

# operations that have a result for all numbers of usual size: one without ends a program, and most should come to their end
SAFE = "add sub mul neg abs sin cos tanh atan erf sign asinh minimum maximum lt le eq and or not where total".split()


def random_program(seed: int, length: int) -> Program:
    """A sampler's step of so many operations, each of arguments that fit."""
    choose, names = random.Random(seed), list(OPERATIONS)
    inputs, _ = signature("sampler", "step_0")
    kinds, masks, rows, questions = [kind for _, kind in inputs], [False] * len(inputs), [], 0
    while len(rows) < length:
        name = choose.choice(names)
        operation = OPERATIONS[name]
        if name == "denoise" and questions == 16:
            continue
        arguments = []
        for letter in operation.takes.replace("*", "n" * choose.randrange(4)):
            if letter == "w":
                arguments.append(choose.choice(operation.words))
            elif letter == "t":
                arguments.append([choose.random() for _ in range(choose.randrange(1, 6))])
            elif name == "noise":
                arguments.append([choose.randrange(9)])
            elif letter in "vn" and (choose.random() < 0.3 or name == "quantile"):
                arguments.append([choose.uniform(0, 1)])
            else:  # recent values are likelier, so that lines get long
                arguments.append(
                    choose.randrange(len(kinds)) if choose.random() < 0.3 else len(kinds) - 1 - int(choose.expovariate(0.3)) % len(kinds)
                )
        row = (name, *(tuple(a) if isinstance(a, list) else a for a in arguments))
        try:
            kind, mask = result_of(row, kinds, masks)
        except ProgramError:
            continue
        if kind == 0 and name not in SAFE and choose.random() < 0.99:
            continue
        rows.append([name, *arguments]), kinds.append(kind), masks.append(mask)
        questions += name == "denoise"
    fields = [i for i, (kind, mask) in enumerate(zip(kinds, masks)) if kind == 2 and not mask]
    step = {"operations": rows, "outputs": [choose.choice(fields), choose.choice([None, *fields])]}
    return Program(json.dumps({"api": 1, "kind": "sampler", "name": "Random", "facts": FACTS, "functions": {"step_0": step}}))


def measured(call) -> tuple[int, float]:
    """Peak of the bytes of tensors that a call makes, and its seconds on this thread's processor."""
    start = time.thread_time()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    seconds = time.thread_time() - start
    now = most = 0
    for event in sorted((e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most, seconds


def state_of(shape, dtype, seed=0):
    """A state, with values at which most functions are defined."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
