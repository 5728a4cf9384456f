"""The sandbox against a corpus of hostile sources: no mark outside, no change of the host, one of the documented errors, and the host goes on."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from attack_sources import ATTACKS

import diffnb
from diffnb.denoise import Gaussian
from diffnb.files import (
    ComponentBadResult,
    ComponentCrashed,
    ComponentError,
    ComponentProtocol,
    ComponentSource,
    ComponentTimeout,
    SandboxedSampler,
    SandboxedSchedule,
    SandboxedSDE,
    Worker,
    jail,
    sandboxed,
    unavailable,
)
from diffnb.noise import VP, Cosine, Linear

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no sandbox here: {unavailable()}")

GOOD = """
from dataclasses import dataclass
from diffnb.noise import NoiseSchedule

@dataclass(frozen=True)
class Straight(NoiseSchedule):
    low: float = 0.1
    high: float = 20.0

    def beta(self, t):
        return self.low + t * (self.high - self.low)

    def integral(self, t):
        return t * (self.low + t * ((self.high - self.low) / 2))
"""


def host_state():
    """What an attack must leave as it is."""
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.random.get_rng_state().sum().item(),
        torch.exp,
        dict(os.environ),
        os.getcwd(),
        sorted(name for name in sys.modules if name.startswith("component")),
        Linear().beta(torch.tensor(0.5)).item(),
    )


@pytest.fixture(scope="module")
def listener():
    """A port that notes who calls."""
    calls, server = [], socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                calls.append(server.accept()[1])
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    yield server.getsockname()[1], calls
    server.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, tmp_path, listener):
    """No canary, no call, no leak, no change; an error of the four kinds, or a component that computes."""
    port, calls = listener
    canary, secret = tmp_path / "canary", tmp_path / "secret"
    secret.write_text("the secret of the host")
    text = ATTACKS[name].replace("CANARY", str(canary)).replace("SECRET", str(secret)).replace("PORT", str(port))
    source, before, shown = ComponentSource("schedule", "Bad", "NoiseSchedule", text), host_state(), ""
    t = torch.linspace(0, 1, 5)
    started = time.monotonic()
    try:
        made = SandboxedSchedule(source, {})
        made.worker.timeout = 0.5
        value = made.beta(t)
        assert value.shape == t.shape and bool((value >= 0).all())
        repr(made)
        made.worker.close()
    except (ComponentBadResult, ComponentCrashed, ComponentProtocol, ComponentTimeout) as error:
        shown = str(error)
    assert time.monotonic() - started < 15
    assert not canary.exists() and not calls
    assert "the secret" not in shown and all(c.isprintable() for c in shown)
    assert host_state() == before


def test_corpus_is_live(tmp_path):
    """Without a sandbox the attacks succeed: what the tests above show is the jail's doing. Run in a process of its own, which they may harm."""
    live = [name for name in ATTACKS if name.startswith(("walk", "class time"))]
    code = f"""
import os, sys, warnings
import torch
warnings.simplefilter("ignore")
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from attack_sources import ATTACKS
for i, name in enumerate({live!r}):
    if os.fork() == 0:
        try:
            space = {{"__name__": "component"}}
            exec(compile(ATTACKS[name].replace("CANARY", f"{tmp_path}/{{i}}"), "x", "exec"), space)
            bad = space["Bad"]()
            repr(bad), getattr(bad, "beta_max", 0), bad.beta(torch.ones(1))
            del bad, space["Bad"]
        finally:
            os._exit(0)
    os.wait()
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    count = len(list(tmp_path.iterdir()))
    assert count >= 0.85 * len(live), f"{count} of {len(live)} attacks did what they try"


def test_good_component_is_bit_equal():
    """The same numbers as the class would give here."""
    source = ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD)
    theirs, ours, t = sandboxed(source, {"low": 0.2}), Linear(0.2), torch.linspace(0, 1, 101)
    assert theirs.beta(t).equal(ours.beta(t)) and theirs.integral(t).equal(ours.integral(t))
    x = torch.tensor([0.3], dtype=torch.float64)
    assert torch.allclose(VP(theirs).diffusion(x), VP(ours).diffusion(x), rtol=1e-12)


WINGS = ("noise", "denoise", "samplers", "guidance")  # what a component is made of


def test_what_a_component_may_import_is_there_before_the_jail():
    """Every module of these wings; in the jail no file can be opened any more."""
    folders = [Path(diffnb.__file__).parent / wing for wing in WINGS]
    wanted = {f"diffnb.{folder.name}.{file.stem}" for folder in folders for file in folder.glob("*.py") if file.stem != "__init__"}
    said = subprocess.run([sys.executable, "-c", "import sys, diffnb.files.worker; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert len(wanted) > 12 and sorted(wanted - set(said.stdout.split())) == []


def test_a_component_imports_as_people_do():
    """From the wing, from a module, and by a path; inside the jail."""
    text = """
import diffnb.noise
import diffnb.samplers as s
from diffnb import denoise, guidance
from diffnb.core import expand
from diffnb.noise import Cosine
from diffnb.samplers.ode import Heun

class Mixed(diffnb.noise.NoiseSchedule):
    def beta(self, t):
        assert s.Heun is Heun and denoise.Gaussian and guidance.ClassifierFree and guidance.inverse.DDNM and s.checks
        return Cosine().beta(t)

    def integral(self, t):
        return Cosine().integral(t)
"""
    t = torch.linspace(0, 1, 11)
    assert sandboxed(ComponentSource("schedule", "Mixed", "NoiseSchedule", text), {}).beta(t).equal(Cosine().beta(t))


def test_gradient_is_not_silently_zero():
    """A second derivative, which is not known, is an error and not a zero."""
    theirs = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    t = torch.tensor([0.25], requires_grad=True)
    assert torch.autograd.grad(theirs.integral(t).sum(), t)[0].item() == pytest.approx(theirs.beta(t.detach()).item())
    with pytest.raises(ComponentBadResult, match="not known"):
        torch.autograd.grad(theirs.beta(t).sum(), t)


def test_falling_integral_is_refused():
    """A beta that is negative somewhere between the times that are asked for."""
    text = GOOD.replace("return t * (self.low", "return -t * (self.low")
    with pytest.raises(ComponentBadResult, match="falls"):
        sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", text), {})


def test_ended_worker_stays_ended():
    """After a time-out there is one sentence, and no hang."""
    text = GOOD.replace("return self.low + t", "while bool(t[0] == 1): pass\n        return self.low + t")
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", text), {})
    made.worker.timeout = 0.3
    made.beta(torch.zeros(1))
    with pytest.raises(ComponentTimeout, match="0.3 seconds"):
        made.beta(torch.ones(1))
    with pytest.raises(ComponentCrashed, match="was ended before"):
        made.beta(torch.zeros(1))


FLOOD = """
from dataclasses import dataclass, replace
from diffnb.samplers import Sampler

class Flood(Sampler):
    def step(self, denoiser, state, t, s, noise):
        for _ in range(10**6):
            denoiser(state.x, t.time)
        return state
"""
LEVELS = """
from dataclasses import replace
from diffnb.samplers import Sampler

class Jump(Sampler):
    def step(self, denoiser, state, t, s, noise):
        p = denoiser(state.x, t.time)
        z = noise.normal(state.x.shape[1:], "step", state.step, state.x.dtype)
        return replace(state, x=s.alpha * p.x0 + s.sigma * z, x0=p.x0)
"""


def test_callback_flood():
    """A step may ask so many questions and no more."""
    made = SandboxedSampler(ComponentSource("sampler", "Flood", "Sampler", FLOOD), {})
    with pytest.raises(ComponentProtocol, match="256 questions"):
        made(Gaussian(0.4, 0.09).denoiser(VP()), shape=(2, 1), n_steps=3, seeds=0)


def test_sampler_draws_the_noise_of_its_seeds():
    """A stochastic step in the jail equals the same step here, bit for bit."""
    made = SandboxedSampler(ComponentSource("sampler", "Jump", "Sampler", LEVELS), {})
    space = {}
    exec(LEVELS, space)  # the test's own text
    denoiser = Gaussian(0.4, 0.09).denoiser(VP())
    ours, theirs = (s(denoiser, shape=(3, 1), n_steps=4, seeds=[1, 2, 3], dtype=torch.float64).x for s in (space["Jump"](), made))
    assert ours.equal(theirs)


def test_process_rates():
    """Rates are computed inside, and equal the closed form."""
    text = "from diffnb.noise import SDE\nclass Line(SDE):\n    t_max = 0.99\n"
    text += "    def alpha(self, t):\n        return 1 - t\n    def sigma(self, t):\n        return t * 1.0\n"
    made = SandboxedSDE(ComponentSource("process", "Line", "SDE", text), {})
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha_rate, sigma_rate = made.rates(t)
    assert alpha_rate.tolist() == [-1.0] * 5 and sigma_rate.tolist() == [1.0] * 5


def test_denoiser_questions_are_checked():
    """Times outside the process and names outside the table do not reach the denoiser."""
    text = FLOOD.replace("for _ in range(10**6):\n            denoiser(state.x, t.time)", "denoiser.ask('denoiser', '__init__', state.x)")
    made = SandboxedSampler(ComponentSource("sampler", "Flood", "Sampler", text), {})
    with pytest.raises(ComponentProtocol, match="other than x0"):
        made(Gaussian(0.4, 0.09).denoiser(VP()), shape=(2, 1), n_steps=3, seeds=0)


def test_jail_that_does_not_hold_gets_no_source(monkeypatch):
    """The self-test fails closed: what the zygote says is believed only if it says ready."""
    monkeypatch.setattr("diffnb.files.master.Worker._receive", lambda self, deadline: {"failed": "the jail does not hold"})
    sent = []
    monkeypatch.setattr("diffnb.files.worker.send", lambda fd, message: sent.append(message))
    with pytest.raises(PermissionError, match="did not hold"):
        Worker(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    assert not sent


OPEN_JAIL = """
import struct
from diffnb.files import jail
jail.filter_program = lambda machine: struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)  # one instruction: allow
try:
    jail.enter(2**28, 10)
    print("nothing was noticed", flush=True)
except jail.JailError as error:
    print(error, flush=True)
"""


def test_a_jail_without_its_filter_says_what_is_open():
    """The self-test tries the doors themselves: a filter that lets everything pass is found out."""
    done = subprocess.run([sys.executable, "-c", OPEN_JAIL], capture_output=True, text=True, timeout=60)
    assert "the jail does not hold: it was still possible to" in done.stdout and "make a socket" in done.stdout, done


def test_a_frame_is_measured_before_it_is_read(monkeypatch):
    """What is announced as longer than a frame may be is not waited for."""
    worker = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {}).worker
    asked = []
    monkeypatch.setattr(worker, "_exactly", lambda n, deadline: asked.append(n) or (2**20 + 1).to_bytes(4, "little"))
    with pytest.raises(ComponentProtocol, match="announced a frame of 1,048,577 bytes"):
        worker._receive(time.monotonic() + 5)
    assert asked == [4]


def test_workers_end_with_their_owner():
    """No process is left over when a component is forgotten."""
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    connection = made.worker.connection
    made.worker.close()
    assert connection.fileno() == -1
    with pytest.raises(ComponentError):
        made.beta(torch.zeros(1))


def test_no_name_from_outside_reaches_the_allowed_calls():
    """The list of system calls holds none that takes a path, an address or a process."""
    forbidden = {
        "open",
        "openat",
        "openat2",
        "connect",
        "socket",
        "bind",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "execve",
        "execveat",
        "kill",
        "tgkill",
        "ptrace",
    }
    forbidden |= {
        "ioctl",
        "prctl",
        "seccomp",
        "memfd_create",
        "sendmsg",
        "recvmsg",
        "process_vm_readv",
        "pidfd_open",
        "io_uring_setup",
        "bpf",
        "mount",
    }
    for numbers in jail.SYSCALLS.values():
        assert not forbidden & set(numbers) and len(numbers) == len(set(numbers.values()))
